// Runs units through a vision graph: units of equal shape and K share a call of at most `most_units`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "bundle/manifest.h"
#include "decode/decoder_run.h"
#include "layout/layout.h"

namespace fopru {

// One unit to encode: where it belongs, and K of the graph (none: the unpruned encoder).
struct Job {
    std::size_t image, unit;
    const PreparedImage* prepared;
    std::optional<std::int64_t> keep;

    const Unit& shape() const { return prepared->plan.units[unit]; }
};

// What a graph gave for one unit. Features stay where the backend has them.
struct UnitOutputs {
    Rows features;                   // [p + K, D]
    std::vector<std::int64_t> kept;  // [K], strictly increasing in 0..N-1; empty where the graph gives none
    std::vector<float> scores;       // [N], finite; empty where the graph gives none
};

using Outputs = std::map<std::pair<std::size_t, std::size_t>, UnitOutputs>;  // by image and unit

// `graph` is "vision_encoder" or "vision_encoder_fopru". BackendError: the graph fails, or gives what the
// format does not allow. BundleError: it lacks a tensor.
Outputs run_jobs(Backend& backend, Session& session, const Manifest& manifest, const std::string& graph,
                 const std::vector<Job>& jobs);

}  // namespace fopru
