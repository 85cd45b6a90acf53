// TensorRT on an NVIDIA GPU: the engines of a bundle, built on this device by `python -m runtime.engine`.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace fopru {

// On the current device. Engines have their precision in the graph, and `threads` has no meaning. Everything
// runs on one stream of its own. Sessions and buffers may outlive it. BackendError: no GPU with its driver;
// EngineError comes from `open`, where a graph has no engine for this device.
std::unique_ptr<Backend> make_tensorrt_backend(const BackendOptions& options);

}  // namespace fopru
