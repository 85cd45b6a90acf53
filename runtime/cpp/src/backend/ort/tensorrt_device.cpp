// ONNX Runtime's TensorRT provider first, CUDA for what it leaves; an engine is built when its graph is first
// opened. Profiles are those of plan.json beside the engines, else the default ones.
#include <filesystem>
#include <map>

#include "backend/ort/cuda_device.h"
#include "backend/ort/tensorrt_profile.h"
#include "base/error.h"
#include "bundle/contract.h"

namespace fopru::ort {

namespace {

namespace fs = std::filesystem;

constexpr const char* tensorrt_provider = "TensorrtExecutionProvider";

fs::path root_of(const std::string& file) { return fs::path(file).parent_path().parent_path(); }

fs::path folder_of(const std::string& file) { return root_of(file) / engines_folder / stem_of(file); }

class TensorrtDevice : public CudaDevice {
public:
    explicit TensorrtDevice(CudaMemory memory) : CudaDevice("ort-tensorrt", std::move(memory)) {}
    const char* provider() const override { return tensorrt_provider; }
    std::string description() const override { return "GPU 0, TensorRT first"; }

    // GroupQueryAttention, which "shared" is made of, is no operator of TensorRT.
    std::vector<std::string> cache_kinds(const std::string&) const override { return {contract::append}; }

    void configure(const Library& library, SessionOptions* options, const std::string& file) override {
        const std::string root = root_of(file).string();
        const fs::path folder = folder_of(file);
        auto plan = plans_.find(root);
        if (plan == plans_.end()) plan = plans_.emplace(root, provider_plan(root)).first;
        const ProviderOptions own = tensorrt_options(plan->second, root, file, folder.string());
        std::error_code error;
        fs::create_directories(folder, error);
        if (error) {
            throw BackendError("ort-tensorrt keeps its engines in " + folder.string() +
                               ", which cannot be made (" + error.message() +
                               "): make the bundle writable, or copy it to where it is");
        }
        append(library, options, own);
        CudaDevice::configure(library, options, file);
    }

    // Before 1.24 the session does not say who runs what, but an engine that was built is a file.
    void opened(const std::string& file, bool placement_known) const override {
        if (placement_known) return;
        std::error_code ignored;
        for (const fs::directory_entry& each : fs::directory_iterator(folder_of(file), ignored)) {
            if (each.path().extension() == ".engine") return;
        }
        throw BackendError("ort-tensorrt opened " + stem_of(file) + ", but TensorRT built no engine in " +
                           folder_of(file).string() + ": use --backend ort-cuda for this bundle");
    }

private:
    void append(const Library& library, SessionOptions* options, const ProviderOptions& own) const {
        const Api& api = library.api();
        TensorrtOptions* made = nullptr;
        if (Status* status = api.create_tensorrt(&made)) not_started(library, status, tensorrt_provider);
        const Owned<TensorrtOptions> owned(made, api.release_tensorrt);
        const OptionPointers pointers(own);
        Status* status =
            api.update_tensorrt(made, pointers.keys.data(), pointers.values.data(), pointers.keys.size());
        if (status != nullptr) not_started(library, status, tensorrt_provider);
        status = api.append_tensorrt(options, made);
        if (status != nullptr) not_started(library, status, tensorrt_provider);
    }

    std::map<std::string, EnginePlan> plans_;  // by the bundle's folder
};

}  // namespace

std::unique_ptr<Device> make_tensorrt_device(const Library& library) {
    return std::make_unique<TensorrtDevice>(gpu_memory(library, "ort-tensorrt", tensorrt_provider));
}

}  // namespace fopru::ort
