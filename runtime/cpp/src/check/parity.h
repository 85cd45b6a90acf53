// Stage-by-stage comparison of this runtime with a reference, each stage with its tolerance and the reason
// for it: runtime/parity.py, word for word.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "check/tensors.h"

namespace fopru {

// Scores closer than this fraction of the score at the boundary of K tie: float32 cannot order them.
constexpr double tie_window = 1e-5;
constexpr const char* of_graph = " of ";  // "logits of <graph>": what a further decoder graph gave

enum class Scale { exact, absolute, of_max, of_mean };

// One compared array; `tolerance` is times the reference's max or mean where `scale` says so.
struct Stage {
    std::string name;
    double tolerance;
    Scale scale;
    const char* reason;
};

const std::vector<Stage>& stages();  // in order

// The comparison of one stage; `tolerance` is absolute here, `max_abs_diff` none where nothing could be
// compared. `skipped` marks a stage behind a near-tie in `kept_indices`: other tokens went on, so there is
// nothing to compare. `cosine` is the mean over rows of the last axis, `gain` how many times as large the
// values are, both of features, scores and logits (the last two less the mean of their row); `chosen`, of
// kept indices, how good the choice is by the reference's scores, from 0 to 1.
struct StageResult {
    std::string name;
    std::optional<double> max_abs_diff;
    double tolerance = 0.0;
    std::string reason;
    bool ok = false;
    std::string detail;
    bool skipped = false;
    std::optional<double> cosine, gain, chosen;
};

struct ParityReport {
    std::vector<StageResult> stages;  // in order

    bool ok() const { return !first_divergence(); }
    std::optional<std::string> first_divergence() const;
};

// How `token_scores` and `kept_indices` are to be read: N of every unit, in order, and the row length where
// whole rows are kept, whose near-ties are between means of rows.
struct UnitScores {
    std::vector<std::int64_t> tokens;
    std::optional<std::vector<std::int64_t>> columns;
};

// `units` tell near-ties from differences; none: every difference of indices diverges. Nothing in `reference`
// is trusted but that tensors have as many values as their shapes say.
ParityReport compare(const Tensors& reference, const Tensors& measured,
                     const std::optional<UnitScores>& units);
StageResult compare_stage(const Stage& stage, const Tensor& reference, const Tensor& measured);

Json to_json(const ParityReport& report);               // as `ParityReport.to_dict()`
std::string format_report(const ParityReport& report);  // a table, without a newline at its end

std::string stage_base(const std::string& name);        // "logits" of "logits of decoder_model_portable"
std::string printed(const char* format, double value);  // by one conversion such as "%.1e"

}  // namespace fopru
