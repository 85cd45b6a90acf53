// Memory of a CUDA device through `libcudart` alone, loaded while the program runs: no CUDA headers are
// needed.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "backend/backend.h"

namespace fopru::ort {

// The functions that are used, with the types of the CUDA runtime's C interface.
struct Cudart {
    int (*allocate)(void**, std::size_t) = nullptr;
    int (*free)(void*) = nullptr;
    int (*copy)(void*, const void*, std::size_t, int direction) = nullptr;
    int (*fill)(void*, int value, std::size_t) = nullptr;
    int (*wait)(void* stream) = nullptr;
    int (*memory)(std::size_t* free, std::size_t* total) = nullptr;
    const char* (*message)(int) = nullptr;
};

// Memory of the current device. Immutable; buffers keep the functions alive.
class CudaMemory {
public:
    explicit CudaMemory(std::shared_ptr<const Cudart> cudart) : cudart_(std::move(cudart)) {}
    // BackendError: there is no such library.
    static CudaMemory load();

    std::unique_ptr<Buffer> allocate(std::size_t bytes,
                                     const std::string& backend) const;  // zeroed; BackendError
    // Any direction; done when it returns. BackendError: CUDA refuses, or an earlier operation failed.
    void copy(void* target, const void* source, std::size_t bytes) const;
    std::size_t free_bytes() const;  // on a Jetson the GPU shares them with the CPU; BackendError: no GPU

private:
    std::shared_ptr<const Cudart> cudart_;
};

}  // namespace fopru::ort
