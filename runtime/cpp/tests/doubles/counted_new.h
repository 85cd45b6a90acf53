// How often this thread asked for host memory, but in the stand-ins (`Uncounted`).
#pragma once

#include <cstdint>

namespace fopru_double {

std::int64_t news_of_backend();

}  // namespace fopru_double
