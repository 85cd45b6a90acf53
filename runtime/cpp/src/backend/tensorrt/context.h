// One execution context with one optimisation profile.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "backend/tensorrt/engine.h"

namespace nvinfer1 {
class IExecutionContext;
}

namespace fopru {

constexpr std::size_t alignment = 256;  // bytes: what TensorRT documents for the address of a tensor

// Where a run reads and writes, by the places of the engine. Of a host tensor the address is on the host.
struct Places {
    std::vector<void*> inputs, outputs;
};

// Remembers what is bound, and passes on only what changes. Intermediate results are in the device's scratch
// block. The engine must outlive it, and the stream must be done with it when it ends. The caller has a
// `Use` of the device.
class Context final : public ScratchUser {
public:
    Context(Device& device, const Engine& engine, int profile);  // BackendError: TensorRT refuses
    ~Context() override;
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    int profile() const { return profile_; }
    void use_scratch(void* address, std::size_t bytes) override;
    // A copy of a shape tensor's values that stays as it is while runs read it; at most 256 bytes.
    void* keep_values(std::size_t input, const unsigned char* values, std::size_t bytes);
    // BackendError: TensorRT refuses a shape or an address, or an output comes out in another shape.
    void bind(const std::vector<View>& inputs, const std::vector<View>& outputs, const Places& places);
    void enqueue();  // after what is on the stream

private:
    struct alignas(alignment) Values {
        std::array<unsigned char, 256> content{};
        std::size_t bytes = 0;
    };
    struct Bound {
        void* address = nullptr;
        Shape shape;
        bool known = false;
    };

    void bind_output(std::size_t place, const View& view, void* address);

    Device& device_;
    const Engine& engine_;
    int profile_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::vector<Bound> inputs_, outputs_;
    std::vector<std::deque<Values>> values_;  // by input; addresses stay
};

}  // namespace fopru
