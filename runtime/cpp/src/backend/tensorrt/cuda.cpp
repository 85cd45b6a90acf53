#include "backend/tensorrt/cuda.h"

#include <cuda_runtime_api.h>

#include "base/error.h"

namespace fopru {

namespace {

void check(const char* name, cudaError_t error) {
    if (error == cudaSuccess) return;
    const char* words = cudaGetErrorString(error);
    // CUDA keeps an error for whoever looks next, which is not for them.
    cudaGetLastError();
    throw BackendError("CUDA failed in " + std::string(name) + ": " +
                       (words == nullptr ? "no words" : words) + " (error " +
                       std::to_string(static_cast<int>(error)) + ")");
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

GpuFacts facts_of(int device) {
    GpuFacts facts;
    cudaDeviceProp properties{};
    check("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
    facts.name = properties.name;
    facts.sm = 10 * properties.major + properties.minor;
    check("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&facts.runtime));
    return facts;
}

}  // namespace

Launch::~Launch() { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(made_)); }

void Launch::run() {
    check("cudaGraphLaunch", cudaGraphLaunch(static_cast<cudaGraphExec_t>(made_), stream_of(cuda_.stream_)));
}

Cuda::Cuda() {
    cudaStream_t made = nullptr;
    try {
        // Without waiting for the legacy default stream, which others may use.
        check("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    } catch (const BackendError& error) {
        throw BackendError("tensorrt needs an NVIDIA GPU with its driver (" + std::string(error.what()) +
                           "): use another backend");
    }
    stream_ = made;
    try {
        check("cudaGetDevice", cudaGetDevice(&device_));
        facts_ = facts_of(device_);
        // As Thor does. CUDA need not stage copies from pageable memory there, and promises nowhere that they
        // are done when the call returns.
        int coherent = 0;
        check("cudaDeviceGetAttribute",
              cudaDeviceGetAttribute(&coherent, cudaDevAttrPageableMemoryAccess, device_));
        coherent_ = coherent != 0;
    } catch (...) {
        cudaStreamDestroy(made);
        throw;
    }
}

// A device that has failed says so elsewhere.
Cuda::~Cuda() { cudaStreamDestroy(stream_of(stream_)); }

int Cuda::enter() noexcept {
    int before = device_;
    if (cudaGetDevice(&before) != cudaSuccess || before != device_) cudaSetDevice(device_);
    return before;
}

void Cuda::leave(int before) noexcept {
    if (before != device_) cudaSetDevice(before);
}

void* Cuda::malloc(std::size_t bytes) {
    void* address = nullptr;
    const cudaError_t error = cudaMalloc(&address, bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // else the next look at it, by whomever, finds this one
        return nullptr;
    }
    check("cudaMalloc", error);
    return address;
}

void Cuda::free(void* address) { check("cudaFree", cudaFree(address)); }

void* Cuda::malloc_host(std::size_t bytes) {
    void* address = nullptr;
    check("cudaMallocHost", cudaMallocHost(&address, bytes));
    return address;
}

void Cuda::free_host(void* address) { check("cudaFreeHost", cudaFreeHost(address)); }

void Cuda::to_device(void* target, const void* source, std::size_t bytes) {
    check("cudaMemcpyAsync",
          cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, stream_of(stream_)));
    if (coherent_) synchronize();
}

void Cuda::to_host(void* target, const void* source, std::size_t bytes) {
    check("cudaMemcpyAsync",
          cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, stream_of(stream_)));
}

void Cuda::copy(void* target, const void* source, std::size_t bytes) {
    check("cudaMemcpyAsync",
          cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream_of(stream_)));
}

void Cuda::copy_rows(std::pair<void*, std::size_t> target, std::pair<const void*, std::size_t> source,
                     std::size_t width, std::size_t rows) {
    check("cudaMemcpy2DAsync", cudaMemcpy2DAsync(target.first, target.second, source.first, source.second,
                                                 width, rows, cudaMemcpyDeviceToDevice, stream_of(stream_)));
}

void Cuda::clear(void* address, std::size_t bytes) {
    check("cudaMemsetAsync", cudaMemsetAsync(address, 0, bytes, stream_of(stream_)));
}

void Cuda::synchronize() { check("cudaStreamSynchronize", cudaStreamSynchronize(stream_of(stream_))); }

std::pair<std::size_t, std::size_t> Cuda::memory() {
    std::size_t free = 0, total = 0;
    check("cudaMemGetInfo", cudaMemGetInfo(&free, &total));
    return {free, total};
}

std::unique_ptr<Launch> Cuda::capture(const std::function<void()>& run) {
    check("cudaStreamBeginCapture",
          cudaStreamBeginCapture(stream_of(stream_), cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
        run();
    } catch (...) {
        // The stream would refuse all else.
        if (cudaStreamEndCapture(stream_of(stream_), &graph) == cudaSuccess && graph != nullptr) {
            cudaGraphDestroy(graph);
        }
        cudaGetLastError();
        throw;
    }
    check("cudaStreamEndCapture", cudaStreamEndCapture(stream_of(stream_), &graph));
    cudaGraphExec_t made = nullptr;
    // The form that CUDA 11 to 13 have in common.
    const cudaError_t error = cudaGraphInstantiateWithFlags(&made, graph, 0);
    cudaGraphDestroy(graph);
    check("cudaGraphInstantiateWithFlags", error);
    return std::make_unique<Launch>(*this, made);
}

}  // namespace fopru
