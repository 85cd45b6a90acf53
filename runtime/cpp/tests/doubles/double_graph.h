// An engine of the stand-in that is an ONNX file, run by ONNX Runtime as $FOPRU_ORT_LIB names it: so a bundle
// gives whole answers on the make-believe GPU.
#pragma once

#include <memory>

#include "base/json.h"
#include "double_toys.h"

namespace fopru_double {

// {"onnx": FILE, "brain": [names of tensors in bfloat16, which the file has in float32], ...}, as
// tests/tensorrt_double.py writes it. BackendError: no ONNX Runtime, or it refuses the file.
std::unique_ptr<Toy> make_graph(const fopru::Json& engine);

}  // namespace fopru_double
