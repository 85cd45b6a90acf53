#include "backend/ort/cuda_memory.h"

#include <dlfcn.h>

#include <algorithm>

#include "base/error.h"

namespace fopru::ort {

namespace {

// The major version that ONNX Runtime was built for; all share the device's memory, so any will do.
constexpr const char* libraries[] = {"libcudart.so.13", "libcudart.so.12", "libcudart.so"};
constexpr int any_direction = 4;  // cudaMemcpyDefault: the driver knows whose address it is

void check(const Cudart& cudart, const char* call, int code) {
    if (code == 0) return;
    const char* text = cudart.message(code);
    throw BackendError(std::string(call) +
                       " failed: " + (text == nullptr ? "error " + std::to_string(code) : text));
}

class CudaBuffer : public Buffer {
public:
    CudaBuffer(std::shared_ptr<const Cudart> cudart, void* data, std::size_t bytes)
        : cudart_(std::move(cudart)), data_(data), bytes_(bytes) {}
    ~CudaBuffer() override { cudart_->free(data_); }
    CudaBuffer(const CudaBuffer&) = delete;
    CudaBuffer& operator=(const CudaBuffer&) = delete;
    void* data() override { return data_; }
    std::size_t bytes() const override { return bytes_; }

private:
    std::shared_ptr<const Cudart> cudart_;
    void* data_;
    std::size_t bytes_;
};

template <class Function>
bool take(void* handle, Function& function, const char* name) {
    void* symbol = dlsym(handle, name);
    static_assert(sizeof(function) == sizeof(symbol));
    *reinterpret_cast<void**>(&function) = symbol;
    return symbol != nullptr;
}

}  // namespace

CudaMemory CudaMemory::load() {
    std::string names;
    for (const char* name : libraries) {
        names += (names.empty() ? "" : ", ") + std::string(name);
        void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);  // never closed: the driver's state is behind it
        if (handle == nullptr) continue;
        auto cudart = std::make_shared<Cudart>();
        const bool whole =
            take(handle, cudart->allocate, "cudaMalloc") && take(handle, cudart->free, "cudaFree") &&
            take(handle, cudart->copy, "cudaMemcpy") && take(handle, cudart->fill, "cudaMemset") &&
            take(handle, cudart->wait, "cudaStreamSynchronize") &&
            take(handle, cudart->memory, "cudaMemGetInfo") &&
            take(handle, cudart->message, "cudaGetErrorString");
        if (whole) return CudaMemory(std::move(cudart));
    }
    throw BackendError(
        "none of " + names +
        " can be loaded: install the CUDA runtime, on a Jetson with `sudo apt install "
        "nvidia-jetpack`, else with `pip install 'onnxruntime-gpu[cuda,cudnn]'` and its folders in "
        "LD_LIBRARY_PATH");
}

std::unique_ptr<Buffer> CudaMemory::allocate(std::size_t bytes, const std::string& backend) const {
    void* data = nullptr;
    // A buffer of no values has no address, which binding wants.
    const std::size_t asked = std::max<std::size_t>(bytes, 1);
    if (const int code = cudart_->allocate(&data, asked)) {
        const char* text = cudart_->message(code);
        throw BackendError(backend + " cannot allocate " + std::to_string(bytes) + " bytes on the device (" +
                           (text == nullptr ? "no reason given" : text) +
                           "): free memory there, or lower the ratio or max_new_tokens");
    }
    auto buffer = std::make_unique<CudaBuffer>(cudart_, data, bytes);
    // Rows behind the valid ones of a cache may be read under a mask, and 0 x NaN is NaN.
    check(*cudart_, "cudaMemset", cudart_->fill(data, 0, asked));
    check(*cudart_, "cudaStreamSynchronize", cudart_->wait(nullptr));
    return buffer;
}

void CudaMemory::copy(void* target, const void* source, std::size_t bytes) const {
    check(*cudart_, "cudaMemcpy", cudart_->copy(target, source, bytes, any_direction));
    // From pageable memory, and on the device, it returns before the copy is done; ONNX Runtime computes on a
    // stream of its own, which does not wait for it.
    check(*cudart_, "cudaStreamSynchronize", cudart_->wait(nullptr));
}

std::size_t CudaMemory::free_bytes() const {
    std::size_t free = 0, total = 0;
    check(*cudart_, "cudaMemGetInfo", cudart_->memory(&free, &total));
    return free;
}

}  // namespace fopru::ort
