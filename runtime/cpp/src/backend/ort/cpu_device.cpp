#include <cstdlib>
#include <cstring>

#include "backend/ort/ort_device.h"
#include "base/error.h"
#include "bundle/contract.h"

namespace fopru::ort {

namespace {

// What wide loads like best. Some sums go by address, so equal alignment is equal numbers, from run to run.
constexpr std::size_t alignment = 64;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// From calloc, whose zeroed pages cost nothing before they are touched.
class HostBuffer : public Buffer {
public:
    explicit HostBuffer(std::size_t bytes) : bytes_(bytes) {
        std::size_t asked = 0;
        if (!__builtin_add_overflow(bytes, alignment, &asked)) memory_.reset(std::calloc(asked, 1));
        if (memory_ == nullptr) {
            throw BackendError("onnxruntime cannot allocate " + std::to_string(bytes) +
                               " bytes: free memory, or lower the ratio or max_new_tokens");
        }
        const std::size_t beyond = reinterpret_cast<std::uintptr_t>(memory_.get()) % alignment;
        data_ = static_cast<char*>(memory_.get()) + (beyond == 0 ? 0 : alignment - beyond);
    }
    void* data() override { return data_; }
    std::size_t bytes() const override { return bytes_; }

private:
    std::size_t bytes_;
    std::unique_ptr<void, Free> memory_;
    char* data_ = nullptr;
};

class CpuDevice : public Device {
public:
    const char* backend() const override { return "onnxruntime"; }
    const char* provider() const override { return "CPUExecutionProvider"; }
    const char* memory() const override { return "Cpu"; }
    bool on_device() const override { return false; }
    std::string description() const override { return "CPU"; }

    std::vector<std::string> cache_kinds(const std::string& cache_dtype) const override {
        if (cache_dtype == "bfloat16") {
            throw BackendError(
                "the decoder's KV cache is in bfloat16, for which onnxruntime has no kernels: run it with "
                "--backend "
                "tensorrt on an NVIDIA GPU, or build the bundle with --precision fp16 or fp32");
        }
        return {contract::shared, contract::append, contract::concat};
    }
    std::unique_ptr<Buffer> allocate(std::size_t bytes) const override {
        return std::make_unique<HostBuffer>(bytes);
    }
    void copy(void* target, const void* source, std::size_t bytes) const override {
        std::memcpy(target, source, bytes);
    }
    void configure(const Library&, SessionOptions*, const std::string&) override {}  // it is always there
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

}  // namespace fopru::ort
