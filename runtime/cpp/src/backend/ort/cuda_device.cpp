#include "backend/ort/cuda_device.h"

#include <algorithm>

#include "base/error.h"
#include "bundle/contract.h"

namespace fopru::ort {

namespace {

const ProviderOptions& cuda_options() {
    // What is not here is ONNX Runtime's default.
    static const ProviderOptions options = {
        {"device_id", "0"},
        // As much as is asked for: the default doubles, which an 8 GB board cannot spare.
        {"arena_extend_strategy", "kSameAsRequested"},
        // The default times every algorithm for every new shape: seconds for each new number of tiles.
        {"cudnn_conv_algo_search", "HEURISTIC"},
        {"use_tf32", "0"}};
    return options;
}

constexpr const char* install =
    "install onnxruntime-gpu and the CUDA it was built for with `pip install 'onnxruntime-gpu[cuda,cudnn]'`, "
    "and set "
    "FOPRU_ORT_LIB to its libonnxruntime.so";

}  // namespace

OptionPointers::OptionPointers(const ProviderOptions& options) {
    for (const auto& [key, value] : options) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
}

CudaMemory gpu_memory(const Library& library, const char* backend, const char* provider) {
    const std::vector<std::string> offered = library.providers();
    if (std::find(offered.begin(), offered.end(), provider) == offered.end()) {
        std::string names;
        for (const std::string& name : offered) names += (names.empty() ? "" : ", ") + name;
        throw BackendError(std::string(backend) + " needs " + provider + ", but " + library.path() +
                           ", ONNX Runtime " + library.version() + ", offers " + names + ": " + install);
    }
    CudaMemory memory = CudaMemory::load();
    try {
        memory.free_bytes();
    } catch (const BackendError& error) {
        throw BackendError(std::string(backend) + " needs an NVIDIA GPU with its driver (" + error.what() +
                           "): use another backend");
    }
    return memory;
}

// "append" computes in float32 too: ONNX Runtime's GroupQueryAttention, which "shared" is made of, has
// kernels for float16 and bfloat16 only on CUDA.
std::vector<std::string> CudaDevice::cache_kinds(const std::string& cache_dtype) const {
    if (cache_dtype == "float16" || cache_dtype == "bfloat16")
        return {contract::shared, contract::append, contract::concat};
    return {contract::append, contract::shared, contract::concat};
}

void CudaDevice::not_started(const Library& library, Status* status, const char* name) const {
    throw BackendError(std::string(backend()) + " needs " + name + ", which did not start (" +
                       message_of(library.api(), status) + "): " + install + ", or use another backend");
}

void CudaDevice::configure(const Library& library, SessionOptions* options, const std::string&) {
    const Api& api = library.api();
    const char* name = "CUDAExecutionProvider";
    CudaOptions* made = nullptr;
    if (Status* status = api.create_cuda(&made)) not_started(library, status, name);
    const Owned<CudaOptions> owned(made, api.release_cuda);
    const OptionPointers pointers(cuda_options());
    Status* status =
        api.update_cuda(made, pointers.keys.data(), pointers.values.data(), pointers.keys.size());
    if (status != nullptr) not_started(library, status, name);
    status = api.append_cuda(options, made);
    if (status != nullptr) not_started(library, status, name);
}

std::unique_ptr<Device> make_cuda_device(const Library& library) {
    return std::make_unique<CudaDevice>("ort-cuda", gpu_memory(library, "ort-cuda", "CUDAExecutionProvider"));
}

}  // namespace fopru::ort
