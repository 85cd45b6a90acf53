#include "counted_new.h"

#include <cstdlib>
#include <new>

#include "double_device.h"

namespace {

thread_local std::int64_t news = 0;

void* take_or_null(std::size_t bytes) noexcept {
    if (!fopru_double::Uncounted::any()) ++news;
    return std::malloc(bytes == 0 ? 1 : bytes);
}

void* take(std::size_t bytes) {
    void* memory = take_or_null(bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes); }
void* operator new[](std::size_t bytes) { return take(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return take_or_null(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return take_or_null(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace fopru_double {

std::int64_t news_of_backend() { return news; }

}  // namespace fopru_double
