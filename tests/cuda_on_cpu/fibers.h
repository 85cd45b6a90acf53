// One block of CUDA threads on one CPU thread: each is a fiber that runs until it meets a barrier.
//
// Stricter than a GPU on purpose. Between two barriers the threads run one after the other, in rising or falling order, so a
// missing barrier gives different results in the two orders. Copies marked asynchronous happen either at once or not before
// they are waited for, the two ends of what a GPU may do. Divergent barriers, collectives that not every lane joins and copies
// never waited for end the program with a sentence.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned int x = 0, y = 0, z = 0;
};

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

inline bool falling_order = false;  // last thread and last block first
inline bool early_copies = false;   // asynchronous copies happen when they are asked for
inline int launches_until_failure = -1;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::abort();
}

inline void require(bool condition, const char* what) {
  if (!condition) {
    fail(what);
  }
}

enum class Wait { nothing, warp, block, finished };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

constexpr std::size_t kStackBytes = 256 * 1024;

struct Fiber {
  ucontext_t context = {};
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* sanitizer = nullptr;  // what AddressSanitizer keeps for a stack that is not running
  Wait wait = Wait::nothing;
  unsigned int collectives = 0;          // wmma calls so far: equal in all lanes of a warp at each of its barriers
  std::deque<std::vector<Copy>> groups;  // committed copies, oldest first
  std::vector<Copy> open;                // copies not committed yet
  double exchanged = 0.0;                // what a shuffle gives to the other lane
};

class Scheduler {
 public:
  void run(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    require(block.y == 1 && block.z == 1 && grid.y == 1 && grid.z == 1, "only one-dimensional launches are modelled");
    require(block.x % 32 == 0 && block.x <= 1024, "a block is a whole number of warps up to 1024 threads");
    gridDim = grid;
    blockDim = block;
    kernel_ = &kernel;
    while (fibers_.size() < block.x) {
      fibers_.push_back(std::make_unique<Fiber>());
    }
    threads_ = block.x;
    for (unsigned int i = 0; i < grid.x; ++i) {
      blockIdx.x = falling_order ? grid.x - 1 - i : i;
      run_block();
    }
  }

  // Leaves the running thread until everybody of its warp or block has come as far.
  void wait_for(Wait whom) {
    Fiber& fiber = current();
    fiber.wait = whom;
    leave(fiber, &fiber.sanitizer);
  }

  Fiber& current() { return *fibers_[threadIdx.x]; }
  Fiber& lane_of_this_warp(unsigned int lane) { return *fibers_[threadIdx.x / 32 * 32 + lane]; }

 private:
  static void prepare(Fiber& fiber) {
    fiber.wait = Wait::nothing;
    fiber.collectives = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Scheduler::entry, 0);
  }

  void run_block() {
    for (unsigned int i = 0; i < threads_; ++i) {
      prepare(*fibers_[i]);
    }
    do {
      for (unsigned int i = 0; i < threads_; ++i) {
        threadIdx.x = falling_order ? threads_ - 1 - i : i;
        if (current().wait == Wait::nothing) {
          enter(current());
        }
      }
    } while (release());
  }

  // Everybody waits somewhere: opens the barriers that are complete. False once all threads are finished.
  bool release() {
    bool warp_opened = false;
    for (unsigned int warp = 0; warp < threads_; warp += 32) {
      const Fiber& first = *fibers_[warp];
      for (unsigned int i = warp; i < warp + 32; ++i) {
        threadIdx.x = i;
        require(fibers_[i]->wait == first.wait, "the lanes of a warp wait at different barriers");
        require(fibers_[i]->collectives == first.collectives, "not every lane joined a wmma operation");
      }
      if (first.wait == Wait::warp) {
        open(warp, warp + 32);
        warp_opened = true;
      }
    }
    if (warp_opened) {
      return true;
    }
    for (unsigned int i = 0; i < threads_; ++i) {
      threadIdx.x = i;
      require(fibers_[i]->wait == fibers_[0]->wait, "some threads ended while others wait at __syncthreads");
    }
    if (fibers_[0]->wait == Wait::finished) {
      return false;
    }
    open(0, threads_);
    return true;
  }

  void open(unsigned int begin, unsigned int end) {
    for (unsigned int i = begin; i < end; ++i) {
      fibers_[i]->wait = Wait::nothing;
    }
  }

  static void entry();

  void finish() {
    Fiber& fiber = current();
    for (const std::vector<Copy>& group : fiber.groups) {
      require(group.empty(), "a thread ended with copies it never waited for");
    }
    require(fiber.open.empty(), "a thread ended with copies it never committed");
    fiber.groups.clear();
    fiber.wait = Wait::finished;
    leave(fiber, nullptr);
  }

#if defined(__SANITIZE_ADDRESS__)
  void enter(Fiber& fiber) {
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, fiber.stack.get(), kStackBytes);
    swapcontext(&home_, &fiber.context);
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
  }
  void leave(Fiber& fiber, void** keep) {
    __sanitizer_start_switch_fiber(keep, home_stack_, home_bytes_);
    swapcontext(&fiber.context, &home_);
    arrive(fiber.sanitizer);
  }
  void arrive(void* kept) { __sanitizer_finish_switch_fiber(kept, &home_stack_, &home_bytes_); }
  const void* home_stack_ = nullptr;
  std::size_t home_bytes_ = 0;
#else
  void enter(Fiber& fiber) { swapcontext(&home_, &fiber.context); }
  void leave(Fiber& fiber, void** /*keep*/) { swapcontext(&fiber.context, &home_); }
  void arrive(void* /*kept*/) {}
#endif

  std::vector<std::unique_ptr<Fiber>> fibers_;
  unsigned int threads_ = 0;
  ucontext_t home_ = {};
  const std::function<void()>* kernel_ = nullptr;
};

inline Scheduler scheduler;

inline void Scheduler::entry() {
  scheduler.arrive(nullptr);
  (*scheduler.kernel_)();
  scheduler.finish();
}

}  // namespace cuda_on_cpu
