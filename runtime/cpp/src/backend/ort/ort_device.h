// What differs between ONNX Runtime's providers: memory, options, and which work must not stay on the CPU.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/ort/ort_library.h"

namespace fopru::ort {

// Immutable but for `configure`; one per backend.
class Device {
public:
    virtual ~Device() = default;
    virtual const char* backend() const = 0;   // "ort-cuda"
    virtual const char* provider() const = 0;  // "CUDAExecutionProvider": it must take part
    virtual const char* memory() const = 0;    // as ONNX Runtime names it: "Cpu", "Cuda"
    virtual bool on_device() const = 0;
    virtual std::vector<std::string> cache_kinds(const std::string& cache_dtype) const = 0;
    virtual std::string description() const = 0;

    virtual std::unique_ptr<Buffer> allocate(std::size_t bytes) const = 0;  // zeroed; BackendError
    // Between two addresses, of the device or of the host; done when it returns. They do not overlap.
    virtual void copy(void* target, const void* source, std::size_t bytes) const = 0;
    // Adds the providers for a graph. BackendError.
    virtual void configure(const Library& library, SessionOptions* options, const std::string& file) = 0;
    // Behind the opening of a graph. BackendError.
    virtual void opened(const std::string& /*file*/, bool /*placement_known*/) const {}
};

std::unique_ptr<Device> make_cpu_device();
std::unique_ptr<Device> make_cuda_device(const Library& library);      // BackendError: none
std::unique_ptr<Device> make_tensorrt_device(const Library& library);  // BackendError: none

// "decoder" of "/bundle/onnx/decoder.onnx": what messages call a graph.
std::string stem_of(const std::string& file);

}  // namespace fopru::ort
