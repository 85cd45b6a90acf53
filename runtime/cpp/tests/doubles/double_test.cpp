// The make-believe GPU notices what a real one would not forgive.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>

#include "NvInferRuntime.h"
#include "double_device.h"

using namespace fopru_double;

namespace {

class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override {
        if (severity == Severity::kERROR) last = text;
    }
    std::string last;
};

// An engine that copies a number, with one context that is ready.
struct Gpu {
    Gpu() {
        reset();
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        cudaMalloc(&x, 4);
        cudaMalloc(&y, 4);
        cudaMalloc(&scratch, 512);
        const std::string text =
            R"({"toy": "copy", "scratch": 300, "profiles": [{"x": [[1], [1], [1]]}], "tensors": [
            {"name": "x", "type": 0, "dims": [-1], "input": true},
            {"name": "n", "type": 8, "dims": [1], "input": true,
             "host": true}, {"name": "y", "type": 0, "dims": [-1], "input": false}]})";
        runtime.reset(nvinfer1::createInferRuntime(logger));
        engine.reset(runtime->deserializeCudaEngine(text.data(), text.size()));
        context.reset(
            engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
        context->setOptimizationProfileAsync(0, stream);
        context->setDeviceMemoryV2(scratch, 512);
        context->setInputShape("x", {1, {1}});
        context->setTensorAddress("x", x);
        context->setTensorAddress("n", n);
        context->setTensorAddress("y", y);
    }
    ~Gpu() {
        context.reset();
        engine.reset();
        runtime.reset();
        reset();
    }
    std::string violation() const {
        const auto found = device().violations;
        device().violations.clear();
        return found.size() == 1 ? found[0] : std::to_string(found.size()) + " of them";
    }

    cudaStream_t stream = nullptr;
    void *x = nullptr, *y = nullptr, *scratch = nullptr;
    alignas(256) std::int64_t n[1] = {5};
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
};

}  // namespace

TEST_CASE_FIXTURE(Gpu, "work is done when it is waited for") {
    float value = 3;
    cudaMemcpyAsync(x, &value, 4, cudaMemcpyHostToDevice, stream);
    value = 4;  // pageable memory was read at once
    CHECK(context->enqueueV3(stream));
    void* pinned = nullptr;
    cudaMallocHost(&pinned, 4);
    cudaMemcpyAsync(pinned, y, 4, cudaMemcpyDeviceToHost, stream);
    std::memcpy(&value, pinned, 4);
    CHECK(value != 3);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    std::memcpy(&value, pinned, 4);
    CHECK(value == 3);
    cudaFreeHost(pinned);
    CHECK(device().violations.empty());
}

TEST_CASE_FIXTURE(Gpu, "memory that is not there") {
    float value = 0;
    char* last = static_cast<char*>(x) + 1;
    CHECK(cudaMemcpyAsync(last, &value, 4, cudaMemcpyHostToDevice, stream) == cudaErrorInvalidValue);
    CHECK(cudaMemcpyAsync(&value, &value, 4, cudaMemcpyDeviceToHost, stream) == cudaErrorInvalidValue);
    CHECK(cudaMemcpyAsync(x, y, 4, cudaMemcpyHostToDevice, stream) ==
          cudaErrorInvalidValue);  // the other direction
    CHECK(cudaMemcpyAsync(x, x, 4, cudaMemcpyDeviceToDevice, stream) == cudaErrorInvalidValue);
    CHECK(cudaMemsetAsync(x, 0, 5, stream) == cudaErrorInvalidValue);
    CHECK(cudaFree(last) == cudaErrorInvalidValue);
    CHECK(cudaFree(y) == cudaSuccess);
    CHECK(cudaMemcpyAsync(y, x, 4, cudaMemcpyDeviceToDevice, stream) == cudaErrorInvalidValue);
    CHECK(cudaFree(y) == cudaErrorInvalidValue);
    // A run that writes there breaks the device for good.
    device().violations.clear();
    CHECK(context->enqueueV3(stream));
    CHECK(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
    CHECK(cudaMemsetAsync(x, 0, 4, stream) == cudaErrorIllegalAddress);
}

TEST_CASE_FIXTURE(Gpu, "the default stream") {
    cudaMemsetAsync(x, 0, 4, nullptr);
    CHECK(violation() == "cudaMemsetAsync on the default stream");
    CHECK_FALSE(context->enqueueV3(nullptr));
    CHECK(violation() == "enqueueV3 on the default stream");
    CHECK(context->setOptimizationProfileAsync(0, nullptr));
    CHECK(violation() == "setOptimizationProfileAsync on the default stream");
}

TEST_CASE_FIXTURE(Gpu, "what a context must have before it runs") {
    CHECK_FALSE(context->setInputShape("x", {1, {2}}));
    CHECK(logger.last == "Static dimension mismatch while setting input shape for x.");
    CHECK_FALSE(context->setInputShape("y", {1, {1}}));
    CHECK(context->setTensorAddress("y", nullptr));
    CHECK_FALSE(context->enqueueV3(stream));
    CHECK(logger.last == "Address is not set for y.");
    CHECK(context->setTensorAddress("y", static_cast<char*>(scratch) + 4));
    CHECK(violation() == "y at an address that is not aligned");
    CHECK(context->setTensorAddress("n", scratch));
    CHECK(violation() == "n in the memory of the wrong side");
    context->setTensorAddress("n", n);
    context->setTensorAddress("y", x);
    CHECK(context->enqueueV3(stream));
    CHECK(violation() == "y lies over another");
    context->setTensorAddress("y", y);
    context->setDeviceMemoryV2(scratch, 299);
    CHECK_FALSE(context->enqueueV3(stream));
    CHECK(logger.last == "The device memory set is too small.");
    std::unique_ptr<nvinfer1::IExecutionContext> fresh(
        engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    CHECK_FALSE(fresh->setInputShape("x", {1, {1}}));
    CHECK_FALSE(fresh->setOptimizationProfileAsync(1, stream));
    cudaStreamSynchronize(stream);
}

TEST_CASE_FIXTURE(Gpu, "values and contexts that go while runs are in flight") {
    CHECK(context->enqueueV3(stream));
    n[0] = 6;
    cudaStreamSynchronize(stream);
    CHECK(violation() == "n changed before its run");
    CHECK(context->enqueueV3(stream));
    context.reset();
    CHECK(violation() == "a context ended while its runs had not");
    cudaStreamSynchronize(stream);
    CHECK(violation() == "a context ended before its run");
}

TEST_CASE_FIXTURE(Gpu, "a capture records and waits for nothing") {
    cudaGraph_t graph = nullptr;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    CHECK_FALSE(context->enqueueV3(stream));  // TensorRT has not yet run this shape
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(context->enqueueV3(stream));
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
    CHECK(violation() == "cudaStreamSynchronize while work is recorded");
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
}
