// Asynchronous copies into shared memory. They happen in __pipeline_wait_prior, as late as on any GPU, or at once, as early.
#pragma once

#include <cstdint>

#include "fibers.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes) {
  using namespace cuda_on_cpu;
  require(bytes == 4 || bytes == 8 || bytes == 16, "an asynchronous copy is 4, 8 or 16 bytes");
  require(reinterpret_cast<std::uintptr_t>(to) % bytes == 0, "the target of an asynchronous copy is misaligned");
  require(reinterpret_cast<std::uintptr_t>(from) % bytes == 0, "the source of an asynchronous copy is misaligned");
  if (early_copies) {
    std::memcpy(to, from, bytes);
  } else {
    scheduler.current().open.push_back({to, from, bytes});
  }
}

inline void __pipeline_commit() {
  cuda_on_cpu::Fiber& fiber = cuda_on_cpu::scheduler.current();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

inline void __pipeline_wait_prior(std::size_t groups) {
  cuda_on_cpu::Fiber& fiber = cuda_on_cpu::scheduler.current();
  for (; fiber.groups.size() > groups; fiber.groups.pop_front()) {
    for (const cuda_on_cpu::Copy& copy : fiber.groups.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}
