#include "check/parity.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <vector>

#include "base/python_text.h"
#include "check/near_tie.h"

namespace fopru {
namespace {

constexpr const char* after_indices[] = {"pruned_features", "position_ids", "inputs_embeds", "logits",
                                         "tokens"};

StageResult result_of(const Stage& stage, bool ok, const std::string& detail) {
    StageResult result;
    result.name = stage.name;
    result.tolerance = stage.tolerance;
    result.reason = stage.reason;
    result.ok = ok;
    result.detail = detail;
    return result;
}

double greater_or_nan(double one, double other) { return std::isnan(one) || one > other ? one : other; }

double scale_of(const Stage& stage, const Tensor& reference) {
    if (stage.scale != Scale::of_max && stage.scale != Scale::of_mean) return 1.0;
    double most = 0.0, sum = 0.0;
    for (std::size_t i = 0; i < reference.size(); ++i) {
        const double size = std::fabs(reference.at(i));
        most = greater_or_nan(size, most);
        if (std::isnan(most)) return most;
        sum += size;
    }
    if (stage.scale == Scale::of_max || reference.size() == 0) return most;
    return sum / static_cast<double>(reference.size());
}

// A number added to all of them changes nothing, and would hide differences.
bool centred(const Stage& stage) {
    const std::string base = stage_base(stage.name);
    return base == "token_scores" || base == "logits";
}

std::size_t row_width(const Tensor& tensor) {
    return tensor.shape.empty() ? 1 : static_cast<std::size_t>(tensor.shape.back());
}

// In float64; with `centre` each row [last axis] less its mean.
std::vector<double> values_of(const Tensor& tensor, bool centre) {
    std::vector<double> values(tensor.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = tensor.at(i);
    const std::size_t width = row_width(tensor);
    for (std::size_t start = 0; centre && start < values.size(); start += width) {
        double sum = 0.0;
        for (std::size_t i = start; i < start + width; ++i) sum += values[i];
        for (std::size_t i = start; i < start + width; ++i) values[i] -= sum / static_cast<double>(width);
    }
    return values;
}

std::string first_difference(const Tensor& reference, const Tensor& measured, double limit) {
    std::size_t outside = 0, first = 0;
    for (std::size_t i = 0; i < reference.size(); ++i) {
        if (std::fabs(reference.at(i) - measured.at(i)) <= limit) continue;  // false for NaN
        if (outside++ == 0) first = i;
    }
    std::vector<std::int64_t> place(reference.shape.size());
    auto rest = static_cast<std::int64_t>(first);
    for (std::size_t axis = place.size(); axis-- > 0;) {
        const std::int64_t dim = std::max<std::int64_t>(reference.shape[axis], 1);
        place[axis] = rest % dim;
        rest /= dim;
    }
    return std::to_string(outside) + " of " + std::to_string(reference.size()) + " differ, first at " +
           python_repr(place) + ": " + measured.text(first) + ", reference " + reference.text(first);
}

// Mean cosine of rows of a width, none where it is no number.
std::optional<double> row_cosine(const std::vector<double>& reference, const std::vector<double>& measured,
                                 std::size_t width) {
    if (reference.empty()) return 1.0;
    double sum = 0.0;
    for (std::size_t start = 0; start < reference.size(); start += width) {
        double one = 0.0, other = 0.0, product = 0.0;
        bool same = true;
        for (std::size_t i = start; i < start + width; ++i) {
            const double a = reference[i], b = measured[i];
            if (!std::isfinite(a) || !std::isfinite(b)) return std::nullopt;
            one += a * a;
            other += b * b;
            product += a * b;
            same = same && a == b;
        }
        const double lengths = std::sqrt(one) * std::sqrt(other);
        // A row of zeros has no direction: it is like another one, and like nothing else.
        sum += lengths > 0 ? product / lengths : same ? 1.0 : 0.0;
    }
    return sum / static_cast<double>(reference.size() / width);
}

double length_of(const std::vector<double>& values) {
    return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

// Length of the one, taken whole, over that of its reference; none where it is no number.
std::optional<double> length_gain(const std::vector<double>& reference, const std::vector<double>& measured) {
    const double one = length_of(reference), other = length_of(measured);
    if (one == 0.0) return other == 0.0 ? std::optional<double>(1.0) : std::nullopt;
    if (!std::isfinite(other)) return std::nullopt;
    return other / one;
}

// Whether a stage follows from the kept tokens; ids do where newlines depend on them too.
bool depends(const Stage& stage, const Tensor& reference, const Tensor& measured) {
    const std::string base = stage_base(stage.name);
    const bool follows = std::any_of(std::begin(after_indices), std::end(after_indices),
                                     [&](const char* name) { return base == name; });
    return follows || (stage.name == "input_ids" && reference.shape != measured.shape);
}

// All stages, and those of further decoder graphs.
std::vector<Stage> stages_of(const Tensors& measured) {
    std::vector<Stage> found = stages();
    for (const auto& item : measured.items()) {
        if (item.first.find(of_graph) == std::string::npos) continue;
        for (const Stage& stage : stages()) {
            if (stage.name != stage_base(item.first)) continue;
            found.push_back({item.first, stage.tolerance, stage.scale, stage.reason});
        }
    }
    return found;
}

std::string missing_detail(bool in_reference, bool in_measured) {
    std::string sides = in_reference ? "" : "reference";
    if (!in_measured) sides += (sides.empty() ? "" : " and the ") + std::string("measured");
    return "missing from the " + sides + " arrays";
}

}  // namespace

const std::vector<Stage>& stages() {
    static const std::vector<Stage> all = {
        {"pixel_values", 1e-6, Scale::absolute, "same integer resize; only the normalisation may round"},
        {"kept_counts", 0.0, Scale::exact, "integers, known before any graph runs"},
        {"image_features", 1e-4, Scale::of_max, "float32 sums in another order, layer after layer"},
        {"token_scores", 1e-3, Scale::of_mean, "float32 softmax; the mean score 1/Q is the scale"},
        {"kept_indices", 0.0, Scale::exact, "integers; a near-tie is named, never passed over"},
        {"pruned_features", 1e-4, Scale::of_max, "as image_features"},
        {"input_ids", 0.0, Scale::exact, "integers"},
        {"position_ids", 0.0, Scale::exact, "integers"},
        {"inputs_embeds", 1e-4, Scale::of_max, "text rows are copied, visual rows as image_features"},
        {"logits", 1e-4, Scale::of_max, "float32 sums in another order, through the decoder"},
        {"tokens", 0.0, Scale::exact, "greedy: equal unless two logits tie"},
    };
    return all;
}

std::optional<std::string> ParityReport::first_divergence() const {
    for (const StageResult& stage : stages) {
        if (!stage.ok) return stage.name;
    }
    return std::nullopt;
}

ParityReport compare(const Tensors& reference, const Tensors& measured,
                     const std::optional<UnitScores>& units) {
    ParityReport report;
    bool tied = false;
    for (const Stage& stage : stages_of(measured)) {
        // What further decoder graphs gave is compared with the same reference.
        const Tensor* wanted = reference.find(stage_base(stage.name));
        const Tensor* got = measured.find(stage.name);
        if (wanted == nullptr || got == nullptr) {
            report.stages.push_back(
                result_of(stage, false, missing_detail(wanted != nullptr, got != nullptr)));
            continue;
        }
        if (tied && depends(stage, *wanted, *got)) {
            report.stages.push_back(
                result_of(stage, true, "not compared: other tokens were kept, see kept_indices"));
            report.stages.back().skipped = true;
            continue;
        }
        StageResult result = compare_stage(stage, *wanted, *got);
        if (stage.name == "kept_indices" && units) {
            const Choices choices{reference, measured, *units};
            if (!result.ok) tied = judge_tie(result, choices);
            result.chosen = chosen_fraction(choices);
        }
        report.stages.push_back(std::move(result));
    }
    return report;
}

StageResult compare_stage(const Stage& stage, const Tensor& reference, const Tensor& measured) {
    if (reference.shape != measured.shape) {
        return result_of(
            stage, false,
            "shape " + python_repr(measured.shape) + ", reference " + python_repr(reference.shape));
    }
    double largest = 0.0;
    for (std::size_t i = 0; i < reference.size() && !std::isnan(largest); ++i) {
        largest = greater_or_nan(std::fabs(reference.at(i) - measured.at(i)), largest);
    }
    StageResult result = result_of(stage, false, "");
    result.max_abs_diff = largest;
    result.tolerance = stage.tolerance * scale_of(stage, reference);
    result.ok = largest <= result.tolerance;  // false for NaN
    if (!result.ok) result.detail = first_difference(reference, measured, result.tolerance);
    if (stage.scale == Scale::of_max || stage.scale == Scale::of_mean) {
        const std::vector<double> wanted = values_of(reference, centred(stage));
        const std::vector<double> got = values_of(measured, centred(stage));
        result.cosine = row_cosine(wanted, got, row_width(reference));
        result.gain = length_gain(wanted, got);
    }
    return result;
}

std::string stage_base(const std::string& name) { return name.substr(0, name.find(of_graph)); }

}  // namespace fopru
