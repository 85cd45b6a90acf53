#include "backend/registry.h"

namespace fopru {

const std::vector<BackendMaker>& backend_makers() {
    static const std::vector<BackendMaker> makers = {{"onnxruntime", make_ort_backend},
                                                     {"ort-cuda", make_ort_cuda_backend},
                                                     {"ort-tensorrt", make_ort_tensorrt_backend},
                                                     {"tensorrt", make_tensorrt_backend}};
    return makers;
}

}  // namespace fopru
