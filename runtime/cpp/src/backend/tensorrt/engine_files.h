// Where engines lie: `engines/<tag>/<graph>.engine`, with `engines.json` that says what they are of.
// `runtime/tensorrt/engines.py`.
#pragma once

#include <string>

#include "backend/tensorrt/identity.h"
#include "bundle/bundle.h"

namespace fopru {

// SHA-256 over the names and hashes of a graph's files: other weights make it another graph.
std::string graph_hash(const Manifest& manifest, const std::string& graph);

// The engine of a graph of a bundle for this device. `folder` has folders by tag, or is one; empty: the
// bundle's own `engines`. EngineError: none, one of another device or of another graph than the bundle now
// has, or not the file that was built; the message has the command to run.
std::string find_engine(const Bundle& bundle, const std::string& graph, const EngineIdentity& identity,
                        const std::string& folder);

// The same by the path of an ONNX file, whose bundle is looked for two folders up; its hashes are not read
// again. BundleError: it is in none. EngineError: as `find_engine`, or the bundle does not list the file.
std::string find_engine_of_file(const std::string& file, const EngineIdentity& identity,
                                const std::string& folder);

}  // namespace fopru
