// Device memory that is asked for once and used again: blocks, and the buffers that are made of them.
#pragma once

#include <cstddef>
#include <vector>

#include "backend/tensorrt/cuda.h"

namespace fopru {

struct Block {
    void* address = nullptr;
    std::size_t bytes = 0;
};

// Keeps blocks that were given back for the next who asks for about that size: there is one stream, so a
// block may be given on as soon as its last user has been enqueued. What is idle is freed, the largest first,
// when the device runs out, or when all blocks would be a quarter (or 64 MiB, if that is more) above what was
// ever in use at once: CPU and GPU of a Jetson share memory, and Linux may end the process before
// `cudaMalloc` says no. The Cuda must outlive it. Not to be used from two threads at once.
class Pool {
public:
    explicit Pool(Cuda& cuda) : cuda_(cuda) {}
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    Block take(std::size_t bytes);  // at least so many, 512 of them aligned. BackendError: not enough memory
    void give(const Block& block) noexcept;
    // Pinned host memory of at least so many bytes, the same one every time: for one copy at a time.
    void* pinned(std::size_t bytes);
    void trim();                                          // free what is idle
    std::size_t allocated() const { return allocated_; }  // bytes held, idle ones included

private:
    Block new_block(std::size_t wanted);
    void free_largest();
    std::size_t used() const;

    Cuda& cuda_;
    std::vector<Block> idle_;
    Block pinned_;
    std::size_t allocated_ = 0, most_used_ = 0, blocks_ = 0;
};

}  // namespace fopru
