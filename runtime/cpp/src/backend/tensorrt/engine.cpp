#include "backend/tensorrt/engine.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace fopru {

namespace {

using nvinfer1::DataType;
using nvinfer1::OptProfileSelector;

struct Known {
    DataType type;
    Dtype dtype;
};

constexpr Known known[] = {{DataType::kFLOAT, Dtype::float32},
                           {DataType::kHALF, Dtype::float16},
                           {DataType::kBF16, Dtype::bfloat16},
                           {DataType::kINT64, Dtype::int64},
                           {DataType::kBOOL, Dtype::boolean}};

const char* words_of(DataType type) {
    switch (type) {
        case DataType::kINT32: return "INT32";
        case DataType::kINT8: return "INT8";
        case DataType::kUINT8: return "UINT8";
        case DataType::kFP8: return "FP8";
        default: return "of another type";
    }
}

Shape shape_of(const nvinfer1::Dims& dims, const std::string& what) {
    if (dims.nbDims < 0 || dims.nbDims > Shape::most) {
        throw BackendError(what + " has " + std::to_string(dims.nbDims) + " dims, expected 0 to " +
                           std::to_string(Shape::most) + ": build the bundle with others");
    }
    Shape shape;
    shape.rank = dims.nbDims;
    std::copy(dims.d, dims.d + dims.nbDims, shape.dims);
    return shape;
}

bool fits(const Shape& shape, const InputRange& range) {
    if (shape.rank != range.least.rank) return false;
    for (int axis = 0; axis < shape.rank; ++axis) {
        if (shape.dims[axis] < range.least.dims[axis] || shape.dims[axis] > range.most.dims[axis])
            return false;
    }
    return true;
}

std::string list_of(const std::int64_t* values, std::size_t count) {
    std::string text = "[";
    for (std::size_t place = 0; place < count; ++place)
        text += (place ? ", " : "") + std::to_string(values[place]);
    return text + "]";
}

constexpr const char* way_out = "ask for less, or build engines for more with `python -m runtime.engine`";

}  // namespace

std::string text_of(const Shape& shape) { return list_of(shape.dims, static_cast<std::size_t>(shape.rank)); }

Engine::Engine(std::shared_ptr<Device> device, std::unique_ptr<nvinfer1::ICudaEngine> engine,
               std::string name)
    : device_(std::move(device)), engine_(std::move(engine)), name_(std::move(name)) {
    for (int place = 0; place < engine_->getNbIOTensors(); ++place) {
        const char* own = engine_->getIOTensorName(place);
        if (own == nullptr) throw refuse("does not name the tensors of");
        if (engine_->getTensorIOMode(own) == nvinfer1::TensorIOMode::kINPUT) {
            inputs_.push_back(read_tensor(own));
            on_host_.push_back(engine_->isShapeInferenceIO(own));
        } else {
            outputs_.push_back(read_tensor(own));
        }
    }
    std::vector<double> volumes;
    for (int index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
        Profile profile;
        double volume = 0;
        for (std::size_t place = 0; place < inputs_.size(); ++place) {
            profile.push_back(range_of(inputs_[place], index, on_host_[place]));
            const Shape& most = profile.back().most;
            volume += std::accumulate(
                most.dims, most.dims + most.rank, 1.0,
                [](double product, std::int64_t dim) { return product * static_cast<double>(dim); });
        }
        profiles_.push_back(std::move(profile));
        volumes.push_back(volume);
        order_.push_back(index);
    }
    std::stable_sort(order_.begin(), order_.end(), [&](int one, int other) {
        return volumes[static_cast<std::size_t>(one)] < volumes[static_cast<std::size_t>(other)];
    });
}

Engine::~Engine() = default;

std::size_t Engine::scratch_bytes() const {
    return static_cast<std::size_t>(std::max<std::int64_t>(engine_->getDeviceMemorySizeV2(), 0));
}

std::int64_t Engine::greatest(std::size_t input, int axis) const {
    std::int64_t most = -1;
    for (const Profile& profile : profiles_) {
        if (axis >= 0 && axis < profile[input].most.rank)
            most = std::max(most, profile[input].most.dims[axis]);
    }
    return most;
}

int Engine::profile_for(const std::vector<View>& inputs) const {
    for (const int index : order_) {
        const Profile& profile = profiles_[static_cast<std::size_t>(index)];
        bool all = true;
        for (std::size_t place = 0; all && place < inputs.size(); ++place) {
            all = fits(inputs[place].shape, profile[place]);
        }
        if (all) return index;
    }
    no_profile(inputs);
}

void Engine::no_profile(const std::vector<View>& inputs) const {
    std::string given;
    for (std::size_t place = 0; place < inputs.size(); ++place) {
        const Shape& shape = inputs[place].shape;
        std::string ranges;
        bool any = false;
        for (const Profile& profile : profiles_) {
            any = any || fits(shape, profile[place]);
            ranges += (ranges.empty() ? "" : " or ") + text_of(profile[place].least) + ".." +
                      text_of(profile[place].most);
        }
        if (!any) {
            throw BackendError("the engine of " + name_ + " was not built for " + inputs_[place].name +
                               " of shape " + text_of(shape) + ", only for " + ranges + ": " + way_out);
        }
        given += (given.empty() ? "" : ", ") + inputs_[place].name + " " + text_of(shape);
    }
    throw BackendError("the engine of " + name_ + " was not built for these shapes together (" + given +
                       "): " + way_out);
}

void Engine::check_values(std::size_t input, const unsigned char* values, std::size_t bytes,
                          int profile) const {
    const InputRange& range = profiles_[static_cast<std::size_t>(profile)][input];
    const std::size_t count = bytes / sizeof(std::int64_t);
    bool wrong = false;
    for (std::size_t place = 0; place < std::min(count, range.least_values.size()); ++place) {
        std::int64_t value = 0;
        std::memcpy(&value, values + place * sizeof value, sizeof value);
        wrong = wrong || value < range.least_values[place] || value > range.most_values[place];
    }
    if (!wrong) return;
    std::vector<std::int64_t> got(count);
    std::memcpy(got.data(), values, count * sizeof(std::int64_t));
    throw BackendError(
        "the engine of " + name_ + " was not built for " + inputs_[input].name + " " +
        list_of(got.data(), count) + ", only for " +
        list_of(range.least_values.data(), range.least_values.size()) + ".." +
        list_of(range.most_values.data(), range.most_values.size()) +
        ": ask for less with the graph's own selector, or build engines for more with `python -m "
        "runtime.engine`");
}

BackendError Engine::refuse(const std::string& what) const {
    return BackendError("tensorrt " + what + " " + name_ + ": " + device_->messages.take());
}

TensorName Engine::read_tensor(const char* name) const {
    const DataType type = engine_->getTensorDataType(name);
    const auto* found =
        std::find_if(std::begin(known), std::end(known), [&](const Known& own) { return own.type == type; });
    if (found == std::end(known)) {
        throw BackendError(
            "tensor " + std::string(name) + " of " + name_ + " is " + words_of(type) +
            ", expected one of FLOAT, HALF, BF16, INT64, BOOL: build the bundle with inputs and "
            "outputs of these");
    }
    const Shape shape =
        shape_of(engine_->getTensorShape(name), "tensor " + std::string(name) + " of " + name_);
    return {name, found->dtype, std::vector<std::int64_t>(shape.dims, shape.dims + shape.rank)};
}

InputRange Engine::range_of(const TensorName& tensor, int profile, bool host) const {
    InputRange range;
    if (std::find(tensor.shape.begin(), tensor.shape.end(), -1) == tensor.shape.end()) {
        range.least = range.most = Shape(tensor.shape);
    } else {
        const std::string what =
            "profile " + std::to_string(profile) + " of " + name_ + " for " + tensor.name;
        const char* name = tensor.name.c_str();
        range.least = shape_of(engine_->getProfileShape(name, profile, OptProfileSelector::kMIN), what);
        range.most = shape_of(engine_->getProfileShape(name, profile, OptProfileSelector::kMAX), what);
        if (range.least.rank != range.most.rank)
            throw refuse("gives a profile without one rank for " + tensor.name + " of");
    }
    if (host) read_values(tensor, profile, range);
    return range;
}

void Engine::read_values(const TensorName& tensor, int profile, InputRange& range) const {
    if (tensor.dtype != Dtype::int64 || !(range.least == range.most)) return;
    const char* name = tensor.name.c_str();
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 11)
    const auto* least = engine_->getProfileTensorValuesV2(name, profile, OptProfileSelector::kMIN);
    const auto* most = engine_->getProfileTensorValuesV2(name, profile, OptProfileSelector::kMAX);
#else
    const auto* least = engine_->getProfileTensorValues(name, profile, OptProfileSelector::kMIN);
    const auto* most = engine_->getProfileTensorValues(name, profile, OptProfileSelector::kMAX);
#endif
    if (least == nullptr || most == nullptr) return;
    const std::int64_t count = range.least.elements();
    range.least_values.assign(least, least + count);
    range.most_values.assign(most, most + count);
}

}  // namespace fopru
