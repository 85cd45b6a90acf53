// ONNX Runtime on one device.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/ort/ort_device.h"
#include "backend/ort/ort_library.h"

namespace fopru::ort {

// Buffers are the device's own memory, bound by address; a run that returned is done. Sessions may be run
// from several threads, each with bindings and buffers of its own; the rest is for one thread at once.
class OrtBackend : public Backend {
public:
    OrtBackend(std::shared_ptr<const Library> library, std::unique_ptr<Device> device,
               const BackendOptions& options);

    const char* name() const override { return device_->backend(); }
    std::string description() const override;
    const std::vector<std::string>& cache_kinds() const override;
    bool on_device() const override { return device_->on_device(); }
    std::unique_ptr<Session> open(const std::string& graph, const std::string& file) override;

    std::unique_ptr<Buffer> allocate(std::size_t bytes) override { return device_->allocate(bytes); }
    void upload(const View& target, const void* source) override;
    void download(void* target, const View& source) override;
    void copy(const View& target, const View& source) override;

private:
    Owned<SessionOptions> options_for(const std::string& file);
    bool check_placement(const SessionHandle* handle, const std::string& name) const;

    std::shared_ptr<const Library> library_;
    std::unique_ptr<Device> device_;
    BackendOptions options_;
    mutable std::vector<std::string> kinds_;
};

}  // namespace fopru::ort
