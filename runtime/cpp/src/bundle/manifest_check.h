// What must hold between the values of a manifest, with the words of runtime/manifest.py. All throw
// BundleError.
#pragma once

#include "bundle/manifest.h"

namespace fopru {

void check(const PromptTemplate& prompt);
void check(const SpecialTokens& tokens);
void check(const Preprocess& preprocess);
void check(const PruningInfo& pruning);
void check(const DecoderInfo& decoder);
void check(const GraphInfo& graph);
// Across records. `json` is what the manifest was read from: its order decides what is named first.
void check(const Manifest& manifest, const Json& json);

// The tables of graphs offer the tensors of the contract, with their dtypes and fixed dims:
// runtime/graph_check.py.
void check_tables(const Manifest& manifest);

}  // namespace fopru
