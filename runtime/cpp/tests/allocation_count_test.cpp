#include "allocation_count.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

namespace {

std::atomic<std::size_t> count{0};

void* counted(std::size_t bytes) noexcept {
    ++count;
    return std::malloc(bytes == 0 ? 1 : bytes);
}

void* counted_or_thrown(std::size_t bytes) {
    if (void* memory = counted(bytes)) return memory;
    throw std::bad_alloc();
}

}  // namespace

// All that goes with `free` below, as libraries that this program loads use them too.
void* operator new(std::size_t bytes) { return counted_or_thrown(bytes); }
void* operator new[](std::size_t bytes) { return counted_or_thrown(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace fopru::tests {

std::size_t allocations() { return count; }

}  // namespace fopru::tests

TEST_CASE("allocations are counted") {
    const std::size_t before = fopru::tests::allocations();
    const std::vector<int> some(1000);
    CHECK(fopru::tests::allocations() == before + 1);
    CHECK(some.back() == 0);
}
