// Whether an opened graph fits the bundle's table of it: `check_session` of runtime/graph_check.py.
#pragma once

#include <string>

#include "backend/backend.h"
#include "bundle/manifest.h"

namespace fopru {

// BundleError: a tensor is absent, or has another fixed dimension.
void check_session(const std::string& graph, const GraphInfo& info, const Session& session);

}  // namespace fopru
