// What the CUDA and TensorRT providers share.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/ort/cuda_memory.h"
#include "backend/ort/ort_device.h"

namespace fopru::ort {

using ProviderOptions = std::vector<std::pair<std::string, std::string>>;

// Products are float32 without TF32, because parity is held to float32; a bundle in fp16 is the way to the
// tensor cores. ONNX Runtime's CUDA graphs are not used: they replay fixed shapes, and the mask of a step
// grows.
class CudaDevice : public Device {
public:
    CudaDevice(const char* backend, CudaMemory memory) : backend_(backend), memory_(std::move(memory)) {}
    const char* backend() const override { return backend_; }
    const char* provider() const override { return "CUDAExecutionProvider"; }
    const char* memory() const override { return "Cuda"; }
    bool on_device() const override { return true; }
    std::string description() const override { return "GPU 0"; }
    std::vector<std::string> cache_kinds(const std::string& cache_dtype) const override;
    std::unique_ptr<Buffer> allocate(std::size_t bytes) const override {
        return memory_.allocate(bytes, backend_);
    }
    void copy(void* target, const void* source, std::size_t bytes) const override {
        memory_.copy(target, source, bytes);
    }
    void configure(const Library& library, SessionOptions* options, const std::string& file) override;

protected:
    // BackendError "<backend> needs <provider>, ..." with the reason of a status.
    [[noreturn]] void not_started(const Library& library, Status* status, const char* provider) const;

private:
    const char* backend_;
    CudaMemory memory_;
};

// Copies on the GPU, where this library has a provider and there is a GPU. BackendError.
CudaMemory gpu_memory(const Library& library, const char* backend, const char* provider);

// Pointers to keys and values, as ONNX Runtime takes them; valid as long as the options.
struct OptionPointers {
    explicit OptionPointers(const ProviderOptions& options);
    std::vector<const char*> keys, values;
};

}  // namespace fopru::ort
