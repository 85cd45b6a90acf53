// Whether an opened graph is the one that a bundle describes. runtime/graph_check.py.
#pragma once

#include <string>

#include "backend/backend.h"
#include "bundle/manifest.h"

namespace fopru {

// The graph has the tensors of its table, and the same dims wherever both fix them. BundleError.
void check_session(const std::string& graph, const GraphInfo& info, const Session& session);

}  // namespace fopru
