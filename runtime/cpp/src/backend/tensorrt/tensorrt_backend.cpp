#include "backend/tensorrt/tensorrt_backend.h"

#include <NvInferRuntime.h>

#include <cstring>
#include <filesystem>
#include <utility>

#include "backend/tensorrt/device.h"
#include "backend/tensorrt/engine_files.h"
#include "backend/tensorrt/identity.h"
#include "backend/tensorrt/recorded.h"
#include "backend/tensorrt/session.h"
#include "base/error.h"

namespace fopru {

namespace {

constexpr std::size_t most_pinned = std::size_t{8}
                                    << 20;  // of a copy to the host that goes through pinned memory

void check_same(const View& target, const View& source) {
    if (target.dtype == source.dtype && target.shape.elements() == source.shape.elements()) return;
    throw BackendError("cannot copy " + std::to_string(source.shape.elements()) + " values of " +
                       name_of(source.dtype) + " into a view of " + std::to_string(target.shape.elements()) +
                       " of " + name_of(target.dtype) + ": give as many of the same dtype");
}

// All from the first row to the end of the last one.
View spread(const View& view, const Shape& rows, std::int64_t pitch) {
    return {view.buffer, view.dtype, {(rows.dims[0] - 1) * pitch + rows.dims[1]}, view.offset};
}

class TensorRtBackend final : public Backend {
public:
    explicit TensorRtBackend(BackendOptions options)
        : options_(std::move(options)), device_(std::make_shared<Device>()) {}

    const char* name() const override { return "tensorrt"; }

    std::string description() const override {
        const GpuFacts& facts = device_->cuda.facts();
        return "TensorRT " + tensorrt_version() + ", CUDA " + std::to_string(facts.runtime / 1000) + "." +
               std::to_string(facts.runtime % 1000 / 10) + ", " + facts.name + " (SM" +
               std::to_string(facts.sm) + ")";
    }

    const std::vector<std::string>& cache_kinds() const override { return kinds_; }
    bool on_device() const override { return true; }

    std::unique_ptr<Session> open(const std::string&, const std::string& file) override {
        const GpuFacts& facts = device_->cuda.facts();
        const EngineIdentity identity = identity_of(facts.name, facts.sm, tensorrt_version());
        const std::string path = find_engine_of_file(file, identity, options_.engines);
        const Use turn(*device_);
        const std::string name = std::filesystem::path(file).stem().string();
        auto engine = std::make_unique<Engine>(device_, device_->load(path), name);
        return std::make_unique<TrtSession>(device_, std::move(engine));
    }

    std::unique_ptr<Buffer> allocate(std::size_t bytes) override {
        std::unique_ptr<DeviceBuffer> made;  // before the lock: it goes back to the pool under one of its own
        const Use turn(*device_);
        made = std::make_unique<DeviceBuffer>(device_, bytes);
        // Rows behind the valid ones of a cache are read under a mask, and 0 x NaN would be NaN.
        if (bytes != 0) device_->cuda.clear(made->data(), bytes);
        made->know_zeros();
        return made;
    }

    void upload(const View& target, const void* source) override {
        const Use turn(*device_);
        DeviceBuffer& buffer = own(target);
        const std::size_t bytes = bytes_of(target);
        if (bytes == 0) return;
        device_->cuda.to_device(address_of(target), source, bytes);
        buffer.know(target.offset, source, bytes);
    }

    void download(void* target, const View& source) override {
        const Use turn(*device_);
        own(source);
        const std::size_t bytes = bytes_of(source);
        if (bytes == 0) return;
        void* pinned = bytes <= most_pinned ? device_->pool.pinned(bytes) : nullptr;
        device_->cuda.to_host(pinned == nullptr ? target : pinned, address_of(source), bytes);
        device_->cuda.synchronize();
        if (pinned != nullptr) std::memcpy(target, pinned, bytes);
    }

    void copy(const View& target, const View& source) override {
        const Use turn(*device_);
        check_same(target, source);
        DeviceBuffer& into = own(target);
        const DeviceBuffer& from = own(source);
        const std::size_t bytes = bytes_of(source);
        if (bytes == 0) return;
        device_->cuda.copy(address_of(target), address_of(source), bytes);
        if (from.host() == nullptr) {
            into.forget();
        } else {
            into.know(target.offset, from.host() + source.offset, bytes);
        }
    }

    void copy_rows(const View& target, const View& source, RowPitches pitches) override {
        const Use turn(*device_);
        check_rows(target, source, pitches);
        const std::int64_t rows = source.shape.dims[0], width = source.shape.dims[1];
        if (rows == 0 || width == 0) return;
        DeviceBuffer& into = own(spread(target, source.shape, pitches.target));
        own(spread(source, source.shape, pitches.source));
        const std::size_t item = item_bytes(source.dtype);
        const auto bytes = [item](std::int64_t count) { return static_cast<std::size_t>(count) * item; };
        device_->cuda.copy_rows({address_of(target), bytes(pitches.target)},
                                {address_of(source), bytes(pitches.source)}, bytes(width),
                                static_cast<std::size_t>(rows));
        into.forget();
    }

    bool records() const override { return true; }

    std::unique_ptr<Recorded> record(const std::vector<Binding*>& bindings) override {
        std::vector<TrtBinding*> own;
        for (Binding* binding : bindings) own.push_back(dynamic_cast<TrtBinding*>(binding));
        return std::make_unique<Replay>(std::move(own));
    }

    void wait() override {
        const Use turn(*device_);
        device_->cuda.synchronize();
    }

private:
    DeviceBuffer& own(const View& view) const { return buffer_of(view, *device_); }

    BackendOptions options_;
    std::shared_ptr<Device> device_;
    std::vector<std::string> kinds_ = {"append"};
};

}  // namespace

std::unique_ptr<Backend> make_tensorrt_backend(const BackendOptions& options) {
    return std::make_unique<TensorRtBackend>(options);
}

}  // namespace fopru
