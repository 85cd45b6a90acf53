// ONNX Runtime and the frozen bundles for unit tests. Without the library (FOPRU_ORT_LIB) these say so and
// pass, but with FOPRU_REQUIRE_ORT=1 they fail: tests/test_cpp_ort.py runs them so.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "backend/ort/ort_device.h"
#include "backend/ort/ort_library.h"
#include "base/error.h"

namespace fopru::toy {

inline std::string frozen(const std::string& file) {
    return (std::filesystem::path(__FILE__).parent_path() / "../../../tests/data" / file)
        .lexically_normal()
        .string();
}

// Null where there is no library.
inline std::shared_ptr<const ort::Library> library() {
    try {
        return ort::Library::load();
    } catch (const BackendError& error) {
        const char* required = std::getenv("FOPRU_REQUIRE_ORT");
        if (required != nullptr && std::string(required) == "1") FAIL(error.what());
        MESSAGE(error.what());
        return nullptr;
    }
}

// The CPU, spoken to as if it were a device: what it computes is read by downloads, and its placement is
// looked at.
class CpuAsDevice : public ort::Device {
public:
    explicit CpuAsDevice(const char* provider = "CPUExecutionProvider") : provider_(provider) {}
    const char* backend() const override { return "ort-test"; }
    const char* provider() const override { return provider_; }
    const char* memory() const override { return "Cpu"; }
    bool on_device() const override { return true; }
    std::string description() const override { return "test"; }
    std::vector<std::string> cache_kinds(const std::string& dtype) const override {
        return cpu_->cache_kinds(dtype);
    }
    std::unique_ptr<Buffer> allocate(std::size_t bytes) const override { return cpu_->allocate(bytes); }
    void copy(void* target, const void* source, std::size_t bytes) const override {
        cpu_->copy(target, source, bytes);
    }
    void configure(const ort::Library&, ort::SessionOptions*, const std::string&) override {}

private:
    const char* provider_;
    std::unique_ptr<ort::Device> cpu_ = ort::make_cpu_device();
};

}  // namespace fopru::toy
