// What sessions and buffers of one TensorRT backend share: the stream, memory, TensorRT's runtime and its
// messages.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/tensorrt/cuda.h"
#include "backend/tensorrt/pool.h"
#include "backend/tensorrt/scratch.h"

namespace nvinfer1 {
class ICudaEngine;
class IRuntime;
}  // namespace nvinfer1

namespace fopru {

class RecordedRun;

// The last errors of TensorRT, which returns false and tells the reason to its logger, from any thread.
class Messages {
public:
    void add(const char* line);
    std::string take();  // what was noted since the last call, for the end of a sentence

private:
    std::mutex mutex_;
    std::string text_;
};

// Lives as long as the last backend, session, binding or buffer that holds it. Whoever uses anything but
// `messages` holds a `Use`: one stream, and one block of scratch memory, are one thread's at a time.
struct Device {
    Device();
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    // BackendError: the file cannot be read, or TensorRT refuses it.
    std::unique_ptr<nvinfer1::ICudaEngine> load(const std::string& path);

    std::mutex mutex;
    Messages messages;
    Cuda cuda;
    Pool pool;
    Scratch scratch;
    // The last used first; a session takes those of its engine along when it goes.
    std::list<std::shared_ptr<RecordedRun>> recorded;

private:
    class Logger;
    std::unique_ptr<Logger> logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

// One thread's turn with a device: holds its mutex, and its GPU is that of the thread meanwhile.
class Use {
public:
    explicit Use(Device& device) : lock_(device.mutex), cuda_(device.cuda), before_(cuda_.enter()) {}
    ~Use() { cuda_.leave(before_); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

private:
    std::lock_guard<std::mutex> lock_;
    Cuda& cuda_;
    int before_;
};

std::string tensorrt_version();  // of the library that is loaded, x.y.z

// Device memory that goes back to the pool with the object. Contents that came from the host are kept there,
// too, where they are few: TensorRT reads shape tensors on the host.
class DeviceBuffer final : public Buffer {
public:
    DeviceBuffer(std::shared_ptr<Device> device,
                 std::size_t bytes);  // of anything; the caller has a `Use`
    ~DeviceBuffer() override;
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;

    void* data() override { return block_.address; }
    std::size_t bytes() const override { return bytes_; }

    // Null where the host does not know the contents any more.
    const unsigned char* host() const { return known_ ? host_.data() : nullptr; }
    void know(std::size_t offset, const void* values, std::size_t bytes);  // the host wrote these
    void know_zeros() { known_ = !host_.empty(); }                         // new, and cleared
    void forget() { known_ = false; }                                      // the device wrote some
    bool of(const Device& device) const { return device_.get() == &device; }

private:
    std::shared_ptr<Device> device_;
    Block block_;
    std::size_t bytes_;
    std::vector<unsigned char> host_;
    bool known_ = false;
};

std::size_t bytes_of(const View& view);  // BackendError: beyond 63 bits
// The buffer of a view, after a look at where it ends. BackendError: no buffer of a device, or the view goes
// past it.
DeviceBuffer& buffer_of(const View& view);
DeviceBuffer& buffer_of(const View& view, const Device& device);  // or of another backend's device
void* address_of(const View& view);

}  // namespace fopru
