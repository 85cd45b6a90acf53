// Options of ONNX Runtime's TensorRT provider, from a plan of engines. runtime/backends/ort_tensorrt.py.
#pragma once

#include <string>

#include "backend/engine_plan.h"
#include "backend/ort/cuda_device.h"

namespace fopru::ort {

constexpr const char* engines_folder = "engines/ort-tensorrt";

// Of the bundle in `root`: the plan in engines/ort-tensorrt/plan.json, else the default one of every graph.
// BackendError, EngineError: that file is no plan; else as `Bundle::open` and `plan_engines`.
EnginePlan provider_plan(const std::string& root);

// `file` is the ONNX file of a graph of the bundle in `root`, `folder` where engines and timing cache are
// kept. BackendError: the plan has no such graph.
ProviderOptions tensorrt_options(const EnginePlan& plan, const std::string& root, const std::string& file,
                                 const std::string& folder);

}  // namespace fopru::ort
