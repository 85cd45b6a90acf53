// What an engine of the stand-in is: a JSON file.
//     {"toy": "decoder", "scratch": 4096, "profiles": [{"inputs_embeds": [[1, 1, 4], [1, 3, 4], [1, 8, 4]],
//     ...}],
//      "values": {"num_keep": [[1], [4], [12]]}}
// "onnx" in the place of "toy" is a graph (double_graph.h); values may be [least, most] of each.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "double_toys.h"

namespace fopru_double {

struct Range {
    Dims points[3];
};

struct Plan {
    std::unique_ptr<Toy> toy;
    std::int64_t scratch = 0;
    std::vector<std::map<std::string, Range>> profiles;
    std::map<std::string, Range> values;
    std::map<std::string, std::vector<std::int32_t>> narrow[3];  // of `values`
};

// Null where its toy is unknown. BundleError: no JSON. BackendError: a graph that cannot be opened.
std::shared_ptr<const Plan> read_plan(const std::string& text);

}  // namespace fopru_double
