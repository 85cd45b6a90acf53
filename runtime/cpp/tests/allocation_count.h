// How often this program has asked for memory, for tests of what must not.
#pragma once

#include <cstddef>

namespace fopru::tests {

std::size_t allocations();  // calls of `operator new` so far, in all threads

}  // namespace fopru::tests
