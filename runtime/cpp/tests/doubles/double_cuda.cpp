// The CUDA runtime on the make-believe GPU.
#include <cstring>

#include "cuda_runtime_api.h"
#include "double_device.h"

using fopru_double::device;
using fopru_double::Device;
using fopru_double::Fault;

namespace {

constexpr int runtime_version = 12060;

cudaError_t keep(cudaError_t error) {
    if (error != cudaSuccess) device().last_error = error;
    return error;
}

// Whether a call may be made on this stream, which is never the default one.
cudaError_t on_stream(const char* call, cudaStream_t stream) {
    const cudaError_t error = device().fails(call);
    if (error != cudaSuccess) return error;
    if (stream == nullptr) device().violate(std::string(call) + " on the default stream");
    device().on_own_gpu(call);
    if (device().streams.count(stream) == 0) return keep(cudaErrorInvalidResourceHandle);
    return keep(device().broken);
}

bool allocated(const void* address, size_t bytes) {
    try {
        device().at(address, bytes);
        return true;
    } catch (const Fault&) {
        return false;
    }
}

bool is_pinned(const void* address) {
    const auto place = reinterpret_cast<std::uintptr_t>(address);
    for (const auto& [start, block] : device().pinned) {
        const auto first = reinterpret_cast<std::uintptr_t>(start);
        if (place >= first && place < first + block.size()) return true;
    }
    return false;
}

// Not while work is recorded: it would wait for what never runs.
cudaError_t wait(const char* call) {
    if (device().recording != nullptr) {
        device().recording_spoilt = true;
        device().violate(std::string(call) + " while work is recorded");
        return keep(cudaErrorStreamCaptureUnsupported);
    }
    return keep(device().drain());
}

cudaError_t upload(void* target, const void* source, size_t bytes) {
    if (device().owns(source) || !allocated(target, bytes)) return keep(cudaErrorInvalidValue);
    const auto* values = static_cast<const unsigned char*>(source);
    // Pageable memory is staged, so read before the call returns, where the device cannot read it by itself.
    if (device().coherent || is_pinned(source)) {
        device().enqueue([=] { std::memcpy(device().at(target, bytes), values, bytes); });
        return cudaSuccess;
    }
    device().enqueue([target, bytes, held = std::vector<unsigned char>(values, values + bytes)] {
        std::memcpy(device().at(target, bytes), held.data(), bytes);
    });
    return cudaSuccess;
}

cudaError_t download(void* target, const void* source, size_t bytes) {
    if (device().owns(target) || !allocated(source, bytes)) return keep(cudaErrorInvalidValue);
    device().to_host.push_back(bytes);
    device().enqueue([=] { std::memcpy(target, device().at(source, bytes), bytes); });
    return is_pinned(target) ? cudaSuccess : wait("cudaMemcpyAsync");
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaStreamCreateWithFlags");
    if (error != cudaSuccess) return error;
    if (flags != cudaStreamNonBlocking) device().violate("a stream that waits for the default one");
    device().gpu = fopru_double::current_gpu();
    auto handle = std::make_unique<char>();
    *stream = reinterpret_cast<cudaStream_t>(handle.get());
    device().streams.emplace(*stream, std::move(handle));
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const fopru_double::Uncounted quiet;
    if (!device().idle()) device().drain();
    return device().streams.erase(stream) != 0 ? cudaSuccess : keep(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = on_stream("cudaStreamSynchronize", stream);
    return error == cudaSuccess ? wait("cudaStreamSynchronize") : error;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = on_stream("cudaStreamBeginCapture", stream);
    if (error != cudaSuccess) return error;
    if (mode != cudaStreamCaptureModeThreadLocal) device().violate("a capture that hinders other threads");
    if (device().recording != nullptr) return keep(cudaErrorStreamCaptureUnsupported);
    device().recording = std::make_unique<Device::Work>();
    device().recording_spoilt = false;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const fopru_double::Uncounted quiet;
    auto work = std::move(device().recording);
    *graph = nullptr;
    const cudaError_t error = on_stream("cudaStreamEndCapture", stream);
    if (error != cudaSuccess) return error;
    if (work == nullptr) return keep(cudaErrorInvalidValue);
    if (device().recording_spoilt || device().unrecordable) return keep(cudaErrorStreamCaptureInvalidated);
    *graph = reinterpret_cast<cudaGraph_t>(work.get());
    device().graphs.emplace(*graph, std::move(work));
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaGraphInstantiateWithFlags");
    if (error != cudaSuccess) return error;
    const auto found = device().graphs.find(graph);
    if (found == device().graphs.end()) return keep(cudaErrorInvalidValue);
    auto work = std::make_unique<Device::Work>(*found->second);
    *made = reinterpret_cast<cudaGraphExec_t>(work.get());
    device().launches.emplace(*made, std::move(work));
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    const fopru_double::Uncounted quiet;
    return device().graphs.erase(graph) != 0 ? cudaSuccess : keep(cudaErrorInvalidValue);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t made) {
    const fopru_double::Uncounted quiet;
    return device().launches.erase(made) != 0 ? cudaSuccess : keep(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t made, cudaStream_t stream) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = on_stream("cudaGraphLaunch", stream);
    if (error != cudaSuccess) return error;
    const auto found = device().launches.find(made);
    if (found == device().launches.end()) return keep(cudaErrorInvalidValue);
    for (const auto& work : *found->second) device().enqueue(work);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaMalloc");
    if (error != cudaSuccess) return error;
    device().on_own_gpu("cudaMalloc");
    if (device().recording != nullptr) return wait("cudaMalloc");
    *address = device().allocate(bytes);
    return keep(*address == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaFree(void* address) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaFree");
    if (error != cudaSuccess) return error;
    const cudaError_t ended = wait("cudaFree");
    return device().release(address) ? ended : keep(cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void** address, size_t bytes) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaMallocHost");
    if (error != cudaSuccess) return error;
    std::vector<unsigned char> block(bytes, 0xFF);
    *address = block.data();
    device().pinned.emplace(*address, std::move(block));
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaFreeHost");
    if (error != cudaSuccess) return error;
    const cudaError_t ended = wait("cudaFreeHost");
    return device().pinned.erase(address) != 0 ? ended : keep(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = on_stream("cudaMemcpyAsync", stream);
    if (error != cudaSuccess) return error;
    if (kind == cudaMemcpyHostToDevice) return upload(target, source, bytes);
    if (kind == cudaMemcpyDeviceToHost) return download(target, source, bytes);
    const auto *to = static_cast<const char*>(target), *from = static_cast<const char*>(source);
    const bool overlap = from < to + bytes && to < from + bytes;  // undefined in CUDA
    if (overlap || !allocated(target, bytes) || !allocated(source, bytes)) return keep(cudaErrorInvalidValue);
    device().enqueue([=] { std::memcpy(device().at(target, bytes), device().at(source, bytes), bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = on_stream("cudaMemcpy2DAsync", stream);
    if (error != cudaSuccess) return error;
    if (kind != cudaMemcpyDeviceToDevice || width > target_pitch || width > source_pitch) {
        return keep(cudaErrorInvalidValue);
    }
    device().enqueue([=] {
        for (size_t row = 0; row < height; ++row) {
            unsigned char* to = device().at(static_cast<char*>(target) + row * target_pitch, width);
            std::memcpy(to, device().at(static_cast<const char*>(source) + row * source_pitch, width), width);
        }
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = on_stream("cudaMemsetAsync", stream);
    if (error != cudaSuccess) return error;
    if (!allocated(address, bytes)) return keep(cudaErrorInvalidValue);
    device().enqueue([=] { std::memset(device().at(address, bytes), value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaMemGetInfo");
    if (error != cudaSuccess) return error;
    *free = device().total - device().used();
    *total = device().total;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* own) {
    const fopru_double::Uncounted quiet;
    *own = fopru_double::current_gpu();
    return device().fails("cudaGetDevice");
}

cudaError_t cudaSetDevice(int own) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaSetDevice");
    if (error != cudaSuccess) return error;
    if (own < 0 || own >= device().gpus) return keep(cudaErrorInvalidDevice);
    fopru_double::current_gpu() = own;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().fails("cudaGetDeviceProperties");
    if (error != cudaSuccess) return error;
    std::strncpy(properties->name, device().name.c_str(), sizeof properties->name - 1);
    properties->major = device().major;
    properties->minor = device().minor;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const fopru_double::Uncounted quiet;
    *value = attribute == cudaDevAttrPageableMemoryAccess && device().coherent ? 1 : 0;
    return device().fails("cudaDeviceGetAttribute");
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    const fopru_double::Uncounted quiet;
    *version = runtime_version;
    return device().fails("cudaRuntimeGetVersion");
}

cudaError_t cudaGetLastError() {
    const fopru_double::Uncounted quiet;
    const cudaError_t error = device().last_error;
    device().last_error = cudaSuccess;
    return error;
}

const char* cudaGetErrorString(cudaError_t error) {
    const fopru_double::Uncounted quiet;
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        default: return "unknown error";
    }
}

}  // extern "C"
