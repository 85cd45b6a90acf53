// How often memory was asked for on this thread, but by the stand-ins.
#pragma once

#include <cstdint>

namespace fopru_double {

std::int64_t news_of_backend();

// While one lives, what this thread asks for is not counted: the stand-ins are not what is tested.
class Uncounted {
public:
    Uncounted();
    ~Uncounted();
    Uncounted(const Uncounted&) = delete;
    Uncounted& operator=(const Uncounted&) = delete;
};

}  // namespace fopru_double
