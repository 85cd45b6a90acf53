// Backends that were built in: one line each, in registry_tensorrt.cpp or registry_without_tensorrt.cpp, of
// which CMake compiles one.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"

namespace fopru {

struct BackendMaker {
    const char* name;
    std::unique_ptr<Backend> (*make)(const BackendOptions&);
};

const std::vector<BackendMaker>& backend_makers();

// All throw BackendError: a library is missing, or there is no such device.
std::unique_ptr<Backend> make_ort_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_ort_cuda_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_ort_tensorrt_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_tensorrt_backend(const BackendOptions& options);  // where it is built

}  // namespace fopru
