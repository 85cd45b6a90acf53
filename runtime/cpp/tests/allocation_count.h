// How often this program has asked for memory, for tests of what must not; and memory that ends.
#pragma once

#include <cstddef>

namespace fopru::tests {

std::size_t allocations();  // calls of `operator new` so far, in all threads

// Of this thread, the call of `operator new` behind so many is refused, once; -1: none. Whether one was since
// the last call.
bool refuse_allocation(long after);

}  // namespace fopru::tests
