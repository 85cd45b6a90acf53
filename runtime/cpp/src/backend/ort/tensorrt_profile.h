// Options of ONNX Runtime's TensorRT provider for one graph, from a plan of engines.
// runtime/backends/ort_tensorrt.py.
#pragma once

#include <string>
#include <string_view>

#include "backend/ort/cuda_device.h"

namespace fopru::ort {

// `plan` is the text of BUNDLE/engines/ort-tensorrt/plan.json, `name` what messages call it; `graph` is the
// graph's file inside the bundle ("onnx/decoder.onnx"), `folder` where engines and timing cache are kept.
// BackendError: not a plan, or one without this graph.
ProviderOptions tensorrt_options(std::string_view plan, const std::string& name, const std::string& graph,
                                 const std::string& folder);

}  // namespace fopru::ort
