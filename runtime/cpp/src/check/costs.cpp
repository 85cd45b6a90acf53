#include "check/costs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/python_text.h"
#include "bundle/contract.h"

namespace fopru {
namespace {

using Precisions = std::map<std::string, std::string>;
using Names = std::vector<std::string>;

constexpr const char* half = "fp16";
constexpr double half_cosine = 0.999, half_gain = 0.02;  // the floor of fp16

const Names& integer_stages() {
    static const Names names = {"kept_indices", "input_ids", "position_ids", "tokens"};
    return names;
}

const Names& vision_stages() {
    static const Names names = {"image_features",  "token_scores", "kept_indices",
                                "pruned_features", "input_ids",    "position_ids"};
    return names;
}

const Names& text_stages() {
    static const Names names = {"inputs_embeds", "logits", "tokens"};
    return names;
}

bool among(const Names& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

std::string precision_of(const Precisions& precisions, const std::string& graph) {
    const auto found = precisions.find(graph);
    return found == precisions.end() ? "fp32" : found->second;
}

// The decoder that stages without a name are about: a bundle may have the portable one alone.
std::string first_decoder(const Precisions& precisions) {
    return precisions.count(contract::decoder) ? contract::decoder : contract::decoder_portable;
}

// The converted precision that a stage is behind, the latest graph's first; fp32 where there is none.
std::string precision_before(const std::string& stage, const Precisions& precisions) {
    const std::string name = stage_base(stage);
    Names graphs;
    if (name == "logits" || name == "tokens") {
        const std::size_t of = stage.find(of_graph);
        graphs.push_back(of == std::string::npos
                             ? first_decoder(precisions)
                             : stage.substr(of + std::char_traits<char>::length(of_graph)));
    }
    const bool text = among(text_stages(), name);
    if (text) graphs.push_back(contract::embed_tokens);
    if (text || among(vision_stages(), name)) {
        graphs.push_back(contract::vision_encoder_fopru);
        graphs.push_back(contract::vision_encoder);
    }
    for (const std::string& graph : graphs) {
        const std::string precision = precision_of(precisions, graph);
        if (precision != "fp32") return precision;
    }
    return "fp32";
}

double recorded_cost(const Json& recorded, const std::string& stage) {
    const Json* costs = recorded.find("costs");
    const Json* own = costs == nullptr ? nullptr : costs->find(stage);
    double cost = 0.0;
    return own != nullptr && own->number(cost) ? cost : 0.0;
}

// A stage that is further off than the build was, as sums in float16 may be; runtime/costs.py has the reason.
StageResult held_to_floor(StageResult stage) {
    if (!stage.cosine || !stage.gain) return stage;
    stage.ok = *stage.cosine >= half_cosine && std::abs(*stage.gain - 1.0) <= half_gain;
    stage.detail += ", cosine " + printed("%.5f", *stage.cosine) + ", " + printed("%.3f", *stage.gain) +
                    " times as large";
    stage.reason = "fp16: beyond the build, as float16 sums may be; cosine " + printed("%g", half_cosine) +
                   ", size within " + printed("%.0f", 100.0 * half_gain) + "%";
    return stage;
}

StageResult judged_stage(StageResult stage, const Precisions& precisions, const Json& recorded) {
    const std::string precision = precision_before(stage.name, precisions);
    if (precision == "fp32" || stage.skipped) return stage;
    if (among(integer_stages(), stage_base(stage.name))) {
        stage.detail =
            stage.ok ? "as in float32" : "differs from float32, as " + precision + " may: " + stage.detail;
        stage.ok = true;
        stage.reason = precision + ": said, not judged";
        return stage;
    }
    if (!stage.max_abs_diff) {
        // Other tokens were kept, so that there is nothing to compare; or the values are no numbers.
        stage.ok = precision_of(precisions, contract::vision_encoder_fopru) != "fp32" &&
                   stage.detail.find("shape") != std::string::npos;
        stage.detail = precision + ": " + stage.detail;
        return stage;
    }
    const double difference = *stage.max_abs_diff;
    stage.detail = precision + " costs " + printed("%.1e", difference);
    if (recorded.is_null()) {
        stage.ok = difference < std::numeric_limits<double>::infinity();  // false for NaN
        stage.tolerance = difference;
        stage.reason = precision + ": measured here";
        return stage;
    }
    stage.tolerance += headroom * recorded_cost(recorded, stage.name);
    stage.ok = difference <= stage.tolerance;
    stage.reason =
        precision + ": " + python_float(headroom) + " times what the build measured, plus float32's";
    return stage.ok || precision != half ? stage : held_to_floor(std::move(stage));
}

}  // namespace

ParityReport judged(const ParityReport& report, const Precisions& precisions, const Json& recorded) {
    ParityReport found;
    for (const StageResult& stage : report.stages)
        found.stages.push_back(judged_stage(stage, precisions, recorded));
    return found;
}

}  // namespace fopru
