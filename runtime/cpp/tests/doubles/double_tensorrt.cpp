// TensorRT's runtime on the make-believe GPU. What TensorRT checks early is checked early, with false and a
// message; what it leaves undefined is a violation.
#include <algorithm>
#include <cstring>
#include <set>

#include "NvInferRuntime.h"
#include "base/error.h"
#include "double_device.h"
#include "double_plan.h"
#include "double_toys.h"

using fopru_double::device;
using fopru_double::Fault;
using fopru_double::Given;
using fopru_double::Plan;
using fopru_double::ToyTensor;

namespace {

using nvinfer1::ILogger;
using Shape = fopru_double::Dims;

constexpr std::size_t alignment = 256;
constexpr int library_version = 100300;

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

std::size_t bytes_of(const ToyTensor& tensor, const Shape& shape) {
    std::size_t bytes = fopru_double::item_bytes(tensor.type);
    for (const std::int64_t dim : shape) bytes *= static_cast<std::size_t>(dim);
    return bytes;
}

bool within(const Shape& shape, const Shape& least, const Shape& most) {
    if (shape.size() != least.size()) return false;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] < least[axis] || shape[axis] > most[axis]) return false;
    }
    return true;
}

class Context final : public nvinfer1::IExecutionContext {
public:
    Context(std::shared_ptr<const Plan> plan, ILogger& logger) : plan_(std::move(plan)), logger_(logger) {
        ++device().counts["contexts"];
    }
    ~Context() noexcept override {
        --device().counts["contexts"];
        if (*running_ != 0 && device().broken == cudaSuccess)
            device().violate("a context ended while its runs had not");
    }

    bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t stream) noexcept override {
        if (device().fails("setOptimizationProfileAsync") != cudaSuccess) return refuse("Profile refused.");
        if (stream == nullptr) device().violate("setOptimizationProfileAsync on the default stream");
        if (index < 0 || index >= static_cast<std::int32_t>(plan_->profiles.size()))
            return refuse("No such profile.");
        profile_ = index;
        shapes_.clear();
        return true;
    }

    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
        const fopru_double::Uncounted quiet;
        if (reinterpret_cast<std::uintptr_t>(memory) % alignment != 0)
            device().violate("scratch that is not aligned");
        scratch_ = memory;
        scratch_bytes_ = size;
        warm_.clear();
    }

    bool setInputShape(const char* name, const nvinfer1::Dims& dims) noexcept override {
        const fopru_double::Uncounted quiet;
        if (device().fails("setInputShape") != cudaSuccess) return refuse("Shape refused.");
        const ToyTensor* tensor = find(name);
        if (tensor == nullptr || !tensor->input || profile_ < 0)
            return refuse("No such input, or no profile yet.");
        const Shape shape(dims.d, dims.d + dims.nbDims);
        const auto& profile = plan_->profiles[static_cast<std::size_t>(profile_)];
        const auto found = profile.find(name);
        const Shape& least = found == profile.end() ? tensor->dims : found->second.points[0];
        const Shape& most = found == profile.end() ? tensor->dims : found->second.points[2];
        if (!within(shape, least, most)) {
            return refuse("Static dimension mismatch while setting input shape for " + std::string(name) +
                          ".");
        }
        shapes_[name] = shape;
        return true;
    }

    bool setTensorAddress(const char* name, void* data) noexcept override {
        const fopru_double::Uncounted quiet;
        if (device().fails("setTensorAddress") != cudaSuccess) return refuse("Address refused.");
        const ToyTensor* tensor = find(name);
        if (tensor == nullptr) return refuse("No such tensor.");
        if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0) {
            device().violate(std::string(name) + " at an address that is not aligned");
        }
        if (data != nullptr && device().owns(data) == tensor->host) {
            device().violate(std::string(name) + " in the memory of the wrong side");
        }
        addresses_[name] = data;
        return true;
    }

    nvinfer1::Dims getTensorShape(const char* name) const noexcept override {
        const fopru_double::Uncounted quiet;
        const ToyTensor* tensor = find(name);
        if (tensor == nullptr) return {-1, {}};
        Given given;
        if (!gather(given)) return dims_of(tensor->dims);
        if (tensor->input) return dims_of(given.shapes.at(name));
        Shape shape = plan_->toy->shape_of(name, given);
        if (device().failures.count("a surprising shape") != 0) shape.back() += 1;
        return dims_of(shape);
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        const fopru_double::Uncounted quiet;
        if (device().fails("enqueueV3") != cudaSuccess)
            return refuse("Error Code 1: Cuda Runtime (invalid argument)");
        if (stream == nullptr || device().streams.count(stream) == 0) {
            device().violate("enqueueV3 on the default stream");
            return refuse("No stream.");
        }
        device().on_own_gpu("enqueueV3");
        if (device().broken != cudaSuccess) return refuse("The device has failed.");
        if (scratch_bytes_ < plan_->scratch) return refuse("The device memory set is too small.");
        for (const ToyTensor& own : plan_->toy->tensors()) {
            const auto found = addresses_.find(own.name);
            if (found == addresses_.end() || found->second == nullptr) {
                return refuse("Address is not set for " + own.name + ".");
            }
        }
        Given given;
        if (!gather(given)) return refuse("Not all shapes are set.");
        for (const auto& [name, values] : given.values) {
            const auto found = plan_->values.find(name);
            if (found == plan_->values.end()) continue;
            if (!within(values, found->second.points[0], found->second.points[2])) {
                return refuse("Shape tensor " + name + " is outside of its profile.");
            }
        }
        // A first run of a shape allocates and tunes, which cannot be recorded.
        const bool first = warm_.insert({given.shapes, given.values}).second;
        if (first && device().recording != nullptr) {
            device().recording_spoilt = true;
            return refuse("A first run cannot be captured.");
        }
        ++device().counts["runs enqueued"];
        check_overlaps(given);
        const bool recorded = device().recording != nullptr;
        if (!recorded) ++*running_;
        device().enqueue([this, given, addresses = addresses_, scratch = scratch_,
                          alive = std::weak_ptr<int>(running_), bytes = scratch_bytes_, recorded] {
            const std::shared_ptr<int> running = alive.lock();
            if (running == nullptr) {
                device().violate("a context ended before its run");
                return;
            }
            run(given, addresses);
            if (bytes > 0)
                std::memset(device().at(scratch, static_cast<std::size_t>(bytes)), 0xFF,
                            static_cast<std::size_t>(bytes));
            if (!recorded) --*running;
        });
        return true;
    }

private:
    using Addresses = std::map<std::string, void*>;

    bool refuse(const std::string& message) const {
        logger_.log(ILogger::Severity::kWARNING, "not for the message");
        logger_.log(ILogger::Severity::kERROR, message.c_str());
        return false;
    }

    const ToyTensor* find(const std::string& name) const {
        for (const ToyTensor& own : plan_->toy->tensors()) {
            if (own.name == name) return &own;
        }
        return nullptr;
    }

    // Shapes and host values as they are now; false where one is missing.
    bool gather(Given& given) const {
        for (const ToyTensor& own : plan_->toy->tensors()) {
            if (!own.input) continue;
            const auto shape = shapes_.find(own.name);
            const bool fixed = std::find(own.dims.begin(), own.dims.end(), -1) == own.dims.end();
            if (shape == shapes_.end() && !fixed) return false;
            given.shapes[own.name] = shape == shapes_.end() ? own.dims : shape->second;
            if (!own.host) continue;
            const auto address = addresses_.find(own.name);
            if (address == addresses_.end() || address->second == nullptr) return false;
            given.values[own.name] = values_at(own, given.shapes[own.name], address->second);
        }
        return true;
    }

    static std::vector<std::int64_t> values_at(const ToyTensor& tensor, const Shape& shape,
                                               const void* address) {
        std::vector<std::int64_t> values(bytes_of(tensor, shape) / sizeof(std::int64_t));
        if (!values.empty()) std::memcpy(values.data(), address, values.size() * sizeof(std::int64_t));
        return values;
    }

    // TensorRT promises nothing where an output lies over another tensor.
    void check_overlaps(const Given& given) const {
        std::vector<std::pair<const char*, const char*>> read, written;
        for (const ToyTensor& own : plan_->toy->tensors()) {
            if (own.host) continue;
            const Shape shape = own.input ? given.shapes.at(own.name) : plan_->toy->shape_of(own.name, given);
            const auto* start = static_cast<const char*>(addresses_.at(own.name));
            const auto range = std::make_pair(start, start + bytes_of(own, shape));
            for (const auto* others : {&written, own.input ? &written : &read}) {
                for (const auto& [first, end] : *others) {
                    if (first < range.second && range.first < end)
                        device().violate(own.name + " lies over another");
                }
            }
            (own.input ? read : written).push_back(range);
        }
    }

    void run(const Given& given, const Addresses& addresses) const {
        std::map<std::string, unsigned char*> data;
        for (const ToyTensor& own : plan_->toy->tensors()) {
            if (own.host) {
                // Whoever changes it while the run is in flight changes what the run reads.
                if (values_at(own, given.shapes.at(own.name), addresses.at(own.name)) !=
                    given.values.at(own.name)) {
                    device().violate(own.name + " changed before its run");
                }
                continue;
            }
            const Shape shape = own.input ? given.shapes.at(own.name) : plan_->toy->shape_of(own.name, given);
            data[own.name] = device().at(addresses.at(own.name), bytes_of(own, shape));
        }
        plan_->toy->run(given, data);
    }

    std::shared_ptr<const Plan> plan_;
    ILogger& logger_;
    std::int32_t profile_ = -1;
    std::map<std::string, Shape> shapes_;
    Addresses addresses_;
    void* scratch_ = nullptr;
    std::int64_t scratch_bytes_ = 0;
    std::set<std::pair<std::map<std::string, Shape>, std::map<std::string, std::vector<std::int64_t>>>> warm_;
    std::shared_ptr<int> running_ = std::make_shared<int>(0);  // runs enqueued and not done
};

class Engine final : public nvinfer1::ICudaEngine {
public:
    Engine(std::shared_ptr<const Plan> plan, ILogger& logger) : plan_(std::move(plan)), logger_(logger) {
        ++device().counts["engines"];
    }
    ~Engine() noexcept override {
        --device().counts["engines"];
        if (plan_.use_count() > 1) device().violate("an engine ended before its contexts");
    }

    std::int32_t getNbIOTensors() const noexcept override {
        return static_cast<std::int32_t>(tensors().size());
    }
    const char* getIOTensorName(std::int32_t index) const noexcept override {
        return tensors()[static_cast<std::size_t>(index)].name.c_str();
    }
    nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override {
        return find(name).input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    }
    nvinfer1::Dims getTensorShape(const char* name) const noexcept override {
        return dims_of(find(name).dims);
    }
    nvinfer1::DataType getTensorDataType(const char* name) const noexcept override { return find(name).type; }
    bool isShapeInferenceIO(const char* name) const noexcept override { return find(name).host; }
    std::int32_t getNbOptimizationProfiles() const noexcept override {
        return static_cast<std::int32_t>(plan_->profiles.size());
    }
    nvinfer1::Dims getProfileShape(const char* name, std::int32_t index,
                                   nvinfer1::OptProfileSelector select) const noexcept override {
        const auto& profile = plan_->profiles[static_cast<std::size_t>(index)];
        const auto found = profile.find(name);
        if (found == profile.end()) return {-1, {}};
        return dims_of(found->second.points[static_cast<std::size_t>(select)]);
    }
    const std::int32_t* getProfileTensorValues(const char* name, std::int32_t,
                                               nvinfer1::OptProfileSelector select) const noexcept override {
        const auto& values = plan_->narrow[static_cast<std::size_t>(select)];
        const auto found = values.find(name);
        return found == values.end() ? nullptr : found->second.data();
    }
    const std::int64_t* getProfileTensorValuesV2(
        const char* name, std::int32_t, nvinfer1::OptProfileSelector select) const noexcept override {
        const auto found = plan_->values.find(name);
        return found == plan_->values.end() ? nullptr
                                            : found->second.points[static_cast<std::size_t>(select)].data();
    }
    std::int64_t getDeviceMemorySizeV2() const noexcept override { return plan_->scratch; }
    nvinfer1::IExecutionContext* createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override {
        if (strategy != nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED) {
            device().violate("a context with memory of its own");
        }
        device().on_own_gpu("createExecutionContext");
        if (device().fails("createExecutionContext") != cudaSuccess) {
            logger_.log(ILogger::Severity::kINTERNAL_ERROR, "Context\n  refused.");
            return nullptr;
        }
        return std::make_unique<Context>(plan_, logger_).release();
    }

private:
    const std::vector<ToyTensor>& tensors() const { return plan_->toy->tensors(); }
    const ToyTensor& find(const std::string& name) const {
        return *std::find_if(tensors().begin(), tensors().end(),
                             [&](const ToyTensor& own) { return own.name == name; });
    }

    std::shared_ptr<const Plan> plan_;
    ILogger& logger_;
};

class Runtime final : public nvinfer1::IRuntime {
public:
    explicit Runtime(ILogger& logger) : logger_(logger) { ++device().counts["runtimes"]; }
    ~Runtime() noexcept override {
        --device().counts["runtimes"];
        if (device().counts["engines"] != 0) device().violate("the runtime ended before its engines");
    }

    nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override {
        device().on_own_gpu("deserializeCudaEngine");
        try {
            const auto plan = fopru_double::read_plan(std::string(static_cast<const char*>(blob), size));
            if (plan != nullptr) return std::make_unique<Engine>(plan, logger_).release();
        } catch (const fopru::BundleError&) {
        } catch (const fopru::BackendError& error) {
            logger_.log(ILogger::Severity::kERROR, error.what());
            return nullptr;
        }
        logger_.log(ILogger::Severity::kERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.");
        return nullptr;
    }

private:
    ILogger& logger_;
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept {
    if (device().fails("createInferRuntime") != cudaSuccess) {
        logger.log(ILogger::Severity::kERROR, "CUDA initialization failure with error: 35");
        return nullptr;
    }
    return std::make_unique<Runtime>(logger).release();
}

extern "C" std::int32_t getInferLibVersion() noexcept { return library_version; }
