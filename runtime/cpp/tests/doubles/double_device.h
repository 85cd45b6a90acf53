// The make-believe GPU behind the stand-ins: its memory, its stream, and what was done with it. Tests read
// and set it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace fopru_double {

// Device memory touched that is not allocated.
struct Fault {};

// Work is done when it is waited for, not when it is enqueued. Memory lies under addresses that the host
// cannot read; a freed address never comes again; new memory, and scratch memory after every run, is full of
// NaN. Not locked: the backend has to be the one that keeps threads apart.
class Device {
public:
    std::string name = "NVIDIA GeForce RTX 3090";
    int major = 8, minor = 6;
    std::size_t total = std::size_t{1} << 30;
    int gpus = 1;                      // of which one is used, all of them alike
    bool coherent = false;             // reads pageable host memory by itself, and later
    bool unrecordable = false;         // no capture ends well
    cudaError_t broken = cudaSuccess;  // what all later work ends with

    std::map<std::string, std::int64_t> counts;  // calls by name, and "contexts", "engines", "runtimes" alive
    std::vector<std::size_t> to_host;            // sizes of copies to the host
    std::vector<std::string> violations;         // what must never be done, in words
    // Calls by name that fail: how many go well before, and with what.
    std::map<std::string, std::pair<int, cudaError_t>> failures;
    cudaError_t last_error = cudaSuccess;

    void* allocate(std::size_t bytes);  // null where it does not fit
    bool release(void* address);
    unsigned char* at(const void* address, std::size_t bytes);  // Fault
    bool owns(const void* address) const;                       // in the range of device addresses
    std::size_t used() const;
    std::size_t blocks() const { return blocks_.size(); }

    void enqueue(std::function<void()> work);
    cudaError_t drain();
    bool idle() const { return queue_.empty(); }
    void violate(const std::string& what) { violations.push_back(what); }
    cudaError_t fails(const char* call);  // counts it
    // A violation where this thread has another GPU than the one that the stream was made on.
    void on_own_gpu(const char* call);
    int gpu = -1;  // of the stream

    using Work = std::vector<std::function<void()>>;
    std::unique_ptr<Work> recording;
    bool recording_spoilt = false;
    std::map<const void*, std::vector<unsigned char>> pinned;
    std::map<cudaStream_t, std::unique_ptr<char>> streams;
    std::map<cudaGraph_t, std::unique_ptr<Work>> graphs;
    std::map<cudaGraphExec_t, std::unique_ptr<Work>> launches;

private:
    std::map<std::uintptr_t, std::vector<unsigned char>> blocks_;
    std::deque<std::function<void()>> queue_;
    std::uintptr_t next_ = 0;
};

// While one lives, what this thread asks the host for is not counted (counted_new.h): the stand-ins are not
// what is tested.
class Uncounted {
public:
    Uncounted();
    ~Uncounted();
    Uncounted(const Uncounted&) = delete;
    Uncounted& operator=(const Uncounted&) = delete;
    static bool any() noexcept;
};

Device& device();
int& current_gpu();  // of this thread
void reset();        // a new one; nothing of the old may be alive

}  // namespace fopru_double
