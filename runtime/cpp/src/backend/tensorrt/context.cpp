#include "backend/tensorrt/context.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

namespace fopru {

namespace {

constexpr std::size_t most_kept = 64;  // different values of one shape tensor

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = shape.rank;
    std::copy(shape.dims, shape.dims + shape.rank, dims.d);
    return dims;
}

bool equal(const nvinfer1::Dims& dims, const Shape& shape) {
    return dims.nbDims == shape.rank && std::equal(shape.dims, shape.dims + shape.rank, dims.d);
}

std::string text_of_dims(const nvinfer1::Dims& dims) {
    std::string text = "[";
    for (int axis = 0; axis < dims.nbDims; ++axis) text += (axis ? ", " : "") + std::to_string(dims.d[axis]);
    return text + "]";
}

}  // namespace

Context::Context(Device& device, const Engine& engine, int profile)
    : device_(device),
      engine_(engine),
      profile_(profile),
      inputs_(engine.inputs().size()),
      outputs_(engine.outputs().size()),
      values_(engine.inputs().size()) {
    context_.reset(
        engine.get().createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (context_ == nullptr) throw engine.refuse("cannot make an execution context for");
    if (!context_->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(device.cuda.stream()))) {
        throw engine.refuse("cannot take profile " + std::to_string(profile) + " of");
    }
    device.scratch.attach(*this, engine.scratch_bytes());
}

Context::~Context() { device_.scratch.detach(*this); }

void Context::use_scratch(void* address, std::size_t bytes) {
    context_->setDeviceMemoryV2(address, static_cast<std::int64_t>(bytes));
}

void* Context::keep_values(std::size_t input, const unsigned char* values, std::size_t bytes) {
    std::deque<Values>& kept = values_[input];
    for (Values& own : kept) {
        if (own.bytes == bytes && std::memcmp(own.content.data(), values, bytes) == 0)
            return own.content.data();
    }
    if (kept.size() == most_kept) {
        device_.cuda.synchronize();  // runs may still read them
        kept.clear();
        inputs_[input].known = false;
    }
    Values& own = kept.emplace_back();
    own.bytes = std::min(bytes, own.content.size());
    std::memcpy(own.content.data(), values, own.bytes);
    return own.content.data();
}

void Context::bind(const std::vector<View>& inputs, const std::vector<View>& outputs, const Places& places) {
    for (std::size_t place = 0; place < inputs.size(); ++place) {
        Bound& bound = inputs_[place];
        const Shape& shape = inputs[place].shape;
        void* address = places.inputs[place];
        if (bound.known && bound.address == address && bound.shape == shape) continue;
        bound.known = false;
        const char* name = engine_.inputs()[place].name.c_str();
        if (!context_->setInputShape(name, dims_of(shape)) || !context_->setTensorAddress(name, address)) {
            throw engine_.refuse("does not take " + std::string(name) + " of shape " + text_of(shape) +
                                 " in");
        }
        bound = {address, shape, true};
    }
    for (std::size_t place = 0; place < outputs.size(); ++place) {
        bind_output(place, outputs[place], places.outputs[place]);
    }
}

void Context::bind_output(std::size_t place, const View& view, void* address) {
    const char* name = engine_.outputs()[place].name.c_str();
    const nvinfer1::Dims got = context_->getTensorShape(name);
    if (!equal(got, view.shape)) {
        throw BackendError("tensorrt failed in " + engine_.name() + ": " + name + " comes out as " +
                           text_of_dims(got) + ", but a view of " + text_of(view.shape) + " is bound");
    }
    Bound& bound = outputs_[place];
    if (bound.known && bound.address == address) return;
    bound.known = false;
    if (!context_->setTensorAddress(name, address)) {
        throw engine_.refuse("does not take an address for " + std::string(name) + " in");
    }
    bound = {address, view.shape, true};
}

void Context::enqueue() {
    if (!context_->enqueueV3(static_cast<cudaStream_t>(device_.cuda.stream())))
        throw engine_.refuse("failed in");
}

}  // namespace fopru
