// One deserialised engine and what TensorRT says of its tensors and profiles.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/tensorrt/device.h"
#include "base/error.h"

namespace fopru {

// What an optimisation profile takes of one input: dims, and content where it is a shape tensor that has a
// range.
struct InputRange {
    Shape least, most;
    std::vector<std::int64_t> least_values, most_values;  // equal lengths, empty: not checked
};

// Immutable after construction. Inputs and outputs keep the engine's order; places count each of them from 0.
class Engine {
public:
    // `name` is for messages. BackendError: a tensor has a dtype or a rank that the runtime does not know.
    Engine(std::shared_ptr<Device> device, std::unique_ptr<nvinfer1::ICudaEngine> engine, std::string name);
    ~Engine();

    nvinfer1::ICudaEngine& get() const { return *engine_; }
    const std::string& name() const { return name_; }
    const std::vector<TensorName>& inputs() const { return inputs_; }
    const std::vector<TensorName>& outputs() const { return outputs_; }
    // Read on the host, when a run is enqueued: it sizes other tensors.
    bool on_host(std::size_t input) const { return on_host_[input]; }
    std::size_t scratch_bytes() const;
    std::int64_t greatest(std::size_t input,
                          int axis) const;  // of any profile, -1 where there is no such axis

    // The tightest profile that takes these inputs, all of them bound. BackendError: none does.
    int profile_for(const std::vector<View>& inputs) const;
    // BackendError: the profile does not take these values of a shape tensor.
    void check_values(std::size_t input, const unsigned char* values, std::size_t bytes, int profile) const;
    // The error of a call that TensorRT refused: "tensorrt WHAT NAME: its words".
    BackendError refuse(const std::string& what) const;

private:
    using Profile = std::vector<InputRange>;  // by input

    TensorName read_tensor(const char* name) const;
    InputRange range_of(const TensorName& tensor, int profile, bool host) const;
    void read_values(const TensorName& tensor, int profile, InputRange& range) const;
    [[noreturn]] void no_profile(const std::vector<View>& inputs) const;

    std::shared_ptr<Device> device_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::string name_;
    std::vector<TensorName> inputs_, outputs_;
    std::vector<bool> on_host_;
    std::vector<Profile> profiles_;
    std::vector<int> order_;  // the tightest first: a decoding step fits the prefill profile, too
};

std::string text_of(const Shape& shape);  // "[1, 3]"

}  // namespace fopru
