// For processors whose instructions for SHA-256 are not used here.
#include "base/sha256.h"

namespace fopru {

Sha256Mixer accelerated_sha256() { return nullptr; }

}  // namespace fopru
