// The operators new and delete of a test program. To be included by one of its sources, which defines
// `memory_for`: memory, or null, for the code at `caller`.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace fopru::tests {

void* memory_for(std::size_t bytes, void* caller) noexcept;

inline void* memory_or_thrown(std::size_t bytes, void* caller) {
    if (void* memory = memory_for(bytes, caller)) return memory;
    throw std::bad_alloc();
}

inline void* malloced(std::size_t bytes) noexcept { return std::malloc(bytes == 0 ? 1 : bytes); }

}  // namespace fopru::tests

// All that goes with `free` below, as libraries that the program loads use them too.
void* operator new(std::size_t bytes) {
    return fopru::tests::memory_or_thrown(bytes, __builtin_return_address(0));
}
void* operator new[](std::size_t bytes) {
    return fopru::tests::memory_or_thrown(bytes, __builtin_return_address(0));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    return fopru::tests::memory_for(bytes, __builtin_return_address(0));
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
    return fopru::tests::memory_for(bytes, __builtin_return_address(0));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
