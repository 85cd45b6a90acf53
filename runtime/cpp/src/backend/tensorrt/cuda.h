// The CUDA calls that the TensorRT backend needs, on one stream of its own.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace fopru {

// What CUDA says of the current device: name as the driver has it, compute capability as one number (87).
struct GpuFacts {
    std::string name;
    int sm = 0;
    int runtime = 0;  // version of libcudart, e.g. 12060
};

class Cuda;

// A recorded graph. The Cuda must outlive it.
class Launch {
public:
    Launch(Cuda& cuda, void* made) : cuda_(cuda), made_(made) {}
    ~Launch();
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;
    void run();  // enqueues it

private:
    Cuda& cuda_;
    void* made_;  // cudaGraphExec_t
};

// One stream of the device that is current where it is made; owns it. Work is enqueued there, so copies and
// runs go in the order in which they were asked for, and memory may be reused as soon as its last user has
// been enqueued. Sizes are bytes. Every method throws BackendError with CUDA's own words when a call fails.
// Not to be used from two threads at once.
class Cuda {
public:
    Cuda();
    ~Cuda();
    Cuda(const Cuda&) = delete;
    Cuda& operator=(const Cuda&) = delete;

    // Makes its GPU this thread's, which has device 0 unless told. Returns the one before, for `leave`. What
    // fails here fails in the calls behind it, too.
    int enter() noexcept;
    void leave(int before) noexcept;

    void* stream() const { return stream_; }  // cudaStream_t, never the default one
    const GpuFacts& facts() const { return facts_; }

    void* malloc(std::size_t bytes);  // null where there is not enough
    void free(void* address);         // waits for the work that may use it
    void* malloc_host(std::size_t bytes);
    void free_host(void* address);

    void to_device(void* target, const void* source, std::size_t bytes);  // the source may change afterwards
    void to_host(void* target, const void* source, std::size_t bytes);    // there after `synchronize`
    void copy(void* target, const void* source, std::size_t bytes);       // inside the device; no overlap
    // Rows of `width` bytes inside the device, each end as (address, bytes from row to row).
    void copy_rows(std::pair<void*, std::size_t> target, std::pair<const void*, std::size_t> source,
                   std::size_t width, std::size_t rows);
    void clear(void* address, std::size_t bytes);
    void synchronize();
    std::pair<std::size_t, std::size_t> memory();  // (free, total)

    // What `run` enqueues, recorded instead of run. BackendError: it cannot be, or `run` threw one.
    std::unique_ptr<Launch> capture(const std::function<void()>& run);

private:
    friend class Launch;
    void* stream_ = nullptr;
    GpuFacts facts_;
    int device_ = 0;
    bool coherent_ = false;  // the device reads pageable memory of the host by itself
};

}  // namespace fopru
