#include "backend/tensorrt/device.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

#include "base/error.h"
#include "base/file.h"

namespace fopru {

namespace {

constexpr std::size_t most_words = 300;
constexpr std::size_t most_noted = 4096;
constexpr std::size_t host_values = 256;  // bytes: shape tensors are a few numbers

}  // namespace

class Device::Logger final : public nvinfer1::ILogger {
public:
    explicit Logger(Messages& messages) : messages_(messages) {}

    void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override {
        if (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR) return;
        try {
            messages_.add(text);
        } catch (const std::exception&) {  // no memory for a message: the call fails all the same
        }
    }

private:
    Messages& messages_;
};

void Messages::add(const char* line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const char* at = line == nullptr ? "" : line; *at != '\0' && text_.size() < most_noted; ++at) {
        const bool space = *at == ' ' || (*at >= '\t' && *at <= '\r');
        if (!space) text_ += *at;
        if (space && !text_.empty() && text_.back() != ' ') text_ += ' ';
    }
    if (!text_.empty() && text_.back() != ' ') text_ += ' ';
}

std::string Messages::take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string text = text_.substr(0, most_words);
    text_.clear();
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return text.empty() ? "TensorRT gave no reason" : text;
}

Device::Device() : pool(cuda), scratch(pool), logger_(std::make_unique<Logger>(messages)) {
    runtime_.reset(nvinfer1::createInferRuntime(*logger_));
    if (runtime_ == nullptr) throw BackendError("tensorrt cannot start: " + messages.take());
}

Device::~Device() {
    const Use turn(*this);
    runtime_.reset();
}

std::unique_ptr<nvinfer1::ICudaEngine> Device::load(const std::string& path) {
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    try {
        // Mapped, as a copy of the weights on the host would not fit beside those on the device.
        const MappedFile file(path);
        const std::string_view bytes = file.bytes();
        if (!bytes.empty()) engine.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
        if (bytes.empty()) messages.add("it is empty");
    } catch (const FileError& error) {
        throw BackendError("the engine " + path + " cannot be read (" + error.what() +
                           "): build it again with `python -m runtime.engine`");
    }
    if (engine == nullptr) {
        throw BackendError("tensorrt cannot load the engine " + path + ": " + messages.take() +
                           "; build it again with `python -m runtime.engine`");
    }
    return engine;
}

std::string tensorrt_version() {
    const int number = getInferLibVersion();
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
}

DeviceBuffer::DeviceBuffer(std::shared_ptr<Device> device, std::size_t bytes)
    : device_(std::move(device)), bytes_(bytes) {
    if (bytes <= host_values) host_.resize(bytes);
    block_ = device_->pool.take(bytes);
}

DeviceBuffer::~DeviceBuffer() {
    const Use turn(*device_);
    device_->pool.give(block_);
}

void DeviceBuffer::know(std::size_t offset, const void* values, std::size_t bytes) {
    if (host_.empty() || offset > host_.size() || bytes > host_.size() - offset) return;
    // A part is no more known than the rest.
    if (bytes == host_.size()) known_ = true;
    if (bytes != 0) std::memcpy(host_.data() + offset, values, bytes);
}

std::size_t bytes_of(const View& view) {
    std::uint64_t size = item_bytes(view.dtype);
    constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
    for (int place = 0; place < view.shape.rank; ++place) {
        const std::int64_t dim = view.shape.dims[place];
        if (dim < 0 || (dim != 0 && size > most / static_cast<std::uint64_t>(dim))) {
            throw BackendError("a view has the dim " + std::to_string(dim) +
                               ", expected dims from 0 on whose product has 63 bits");
        }
        size *= static_cast<std::uint64_t>(dim);
    }
    return static_cast<std::size_t>(size);
}

DeviceBuffer& buffer_of(const View& view) {
    auto* buffer = dynamic_cast<DeviceBuffer*>(view.buffer);
    if (buffer == nullptr) {
        throw BackendError("a view has no buffer of the tensorrt backend: use what its `allocate` returned");
    }
    const std::size_t wanted = bytes_of(view), item = item_bytes(view.dtype);
    if (view.offset > buffer->bytes() || wanted > buffer->bytes() - view.offset) {
        throw BackendError("a view of " + std::to_string(wanted / item) + " values from " +
                           std::to_string(view.offset / item) + " on does not fit its buffer of " +
                           std::to_string(buffer->bytes() / item));
    }
    return *buffer;
}

DeviceBuffer& buffer_of(const View& view, const Device& device) {
    DeviceBuffer& buffer = buffer_of(view);
    if (buffer.of(device)) return buffer;
    throw BackendError(
        "a view has a buffer of another tensorrt backend: use what this one's `allocate` returned");
}

void* address_of(const View& view) {
    return static_cast<unsigned char*>(buffer_of(view).data()) + view.offset;
}

}  // namespace fopru
