#include "base/version.h"

namespace fopru {

const char* library_version() { return FOPRU_VERSION; }  // given by CMake

}  // namespace fopru
