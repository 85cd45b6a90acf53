// What a bundle in another precision than float32 may differ from its golden tensors, which are float32: the
// part of runtime/costs.py that a device needs.
#pragma once

#include <map>
#include <string>

#include "base/json.h"
#include "check/parity.h"

namespace fopru {

constexpr double headroom = 1.5;  // a device may differ from float32 by so many times what the build measured

// A strict report read for a bundle with these precisions, by graph. `recorded` is the manifest's parity,
// null where there is none: then every difference that is a number is taken as measured here. A stage of fp16
// that is further off, as sums in float16 may be, is held to the floor of fp16 in runtime/costs.py.
ParityReport judged(const ParityReport& report, const std::map<std::string, std::string>& precisions,
                    const Json& recorded);

}  // namespace fopru
