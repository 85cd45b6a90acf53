// A graph opened by ONNX Runtime, and tensors bound to it by address.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/ort/ort_library.h"

namespace fopru::ort {

// Of a session; keeps its library alive.
class OrtSession : public Session {
public:
    // `memory` is where bound buffers are ("Cpu", "Cuda"), `backend` and `name` (of the graph) are for
    // messages.
    OrtSession(std::shared_ptr<const Library> library, Owned<SessionHandle> handle, const char* memory,
               std::string backend, std::string name);

    const std::vector<TensorName>& inputs() const override { return inputs_.tensors; }
    const std::vector<TensorName>& outputs() const override { return outputs_.tensors; }
    std::unique_ptr<Binding> bind() override;

    const std::string& name() const { return name_; }
    const std::string& backend() const { return backend_; }

private:
    friend class OrtBinding;

    struct Side {
        std::vector<TensorName> tensors;  // dtype float32 where `elements` has one that no view can have
        std::vector<int> elements;        // element types as ONNX Runtime counts
    };
    Side side(bool inputs) const;
    std::string tensor_name(bool inputs, std::size_t place) const;

    std::shared_ptr<const Library> library_;
    Owned<SessionHandle> handle_;
    Owned<MemoryInfo> memory_;
    std::string backend_, name_;
    Side inputs_, outputs_;
};

int element_of(Dtype dtype);  // as ONNX Runtime counts

}  // namespace fopru::ort
