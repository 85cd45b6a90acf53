#include "allocation_count.h"

#include <doctest/doctest.h>

#include <atomic>
#include <vector>

#include "operators_new.h"

namespace fopru::tests {

namespace {

std::atomic<std::size_t> count{0};
thread_local long left = -1;  // calls until one is refused
thread_local bool refused = false;

}  // namespace

void* memory_for(std::size_t bytes, void*) noexcept {
    ++count;
    if (left >= 0 && left-- == 0) {
        refused = true;
        return nullptr;
    }
    return malloced(bytes);
}

std::size_t allocations() { return count; }

bool refuse_allocation(long after) {
    const bool before = refused;
    refused = false;
    left = after;
    return before;
}

}  // namespace fopru::tests

TEST_CASE("allocations are counted") {
    const std::size_t before = fopru::tests::allocations();
    const std::vector<int> some(1000);
    CHECK(fopru::tests::allocations() == before + 1);
    CHECK(some.back() == 0);
}

TEST_CASE("an allocation is refused once") {
    fopru::tests::refuse_allocation(1);
    std::vector<int> some(10), more;
    bool thrown = false;
    try {
        more.resize(10);
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    more.resize(10);
    CHECK(thrown);
    CHECK(fopru::tests::refuse_allocation(-1));
    CHECK_FALSE(fopru::tests::refuse_allocation(-1));
}
