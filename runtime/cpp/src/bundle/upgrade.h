// Manifests of older formats, rewritten as the current one before they are read: runtime/upgrade.py.
#pragma once

#include "base/json.h"

namespace fopru {

// `data` is an object of format `version`. What cannot be moved stays as it is: reading it then names it.
Json upgraded(const Json& data, std::int64_t version);

}  // namespace fopru
