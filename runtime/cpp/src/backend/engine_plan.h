// Which shapes engines are built for: profiles of every graph, from the manifest and a few limits.
// runtime/tensorrt/plan.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/engine_visual.h"
#include "base/json.h"
#include "bundle/manifest.h"

namespace fopru {

// What requests may ask of engines. Ratios are fractions KEPT; without `ratio`, the bundle's own.
struct EngineLimits {
    int max_images = 4;
    int max_prompt = 512;
    int max_new_tokens = 256;
    std::optional<double> ratio;
    double max_ratio = 1.0;
    int max_image_tokens = 1280;
    bool unpruned = false;

    void check() const;  // EngineError
};

// Least, usual and greatest dims of one input; its content where `values`.
struct InputProfile {
    std::vector<std::int64_t> minimum, optimum, maximum;
    bool values = false;

    void check() const;  // EngineError: other than 0 <= minimum <= optimum <= maximum, each of one length
};

// By input, in the graph's order.
using EngineProfile = std::vector<std::pair<std::string, InputProfile>>;

struct GraphPlan {
    std::string graph, file, precision;  // `file` is inside the bundle
    std::vector<EngineProfile> profiles;
    std::vector<std::string> profile_names{"all"};
};

struct EnginePlan {
    EngineLimits limits;
    VisualSizes visual;
    std::int64_t capacity = 0;   // rows of the longest prompt with its answer
    std::int64_t workspace = 0;  // bytes of scratch memory that the builder may use
    std::int64_t level = 0;      // optimisation level of the builder
    std::vector<GraphPlan> graphs;
};

// EngineError: no decoder that TensorRT can run, or limits that cannot be met; ImageError: the usual picture
// is one that the layout refuses.
EnginePlan plan_engines(const Manifest& manifest, const EngineLimits& limits, std::int64_t workspace);

// What Python's `EnginePlan.to_dict` wrote; `where` names the file, for messages. EngineError.
EnginePlan read_engine_plan(const Json& json, const std::string& where);

}  // namespace fopru
