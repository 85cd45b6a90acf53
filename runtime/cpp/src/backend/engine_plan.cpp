#include "backend/engine_plan.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/python_text.h"
#include "bundle/contract.h"
#include "decode/decoder_run.h"
#include "decode/stacked_cache.h"
#include "vision/vision.h"

namespace fopru {

namespace {

constexpr std::int64_t most_kept = 3839;  // greatest K of a TopK that TensorRT's parser documents
constexpr std::int64_t builder_level = 3;
constexpr double least_ratio = 0.05;

using Dims = std::vector<std::int64_t>;
template <class T>
using Points = std::array<T, 3>;  // least, usual, greatest
template <class T>
using Named = std::vector<std::pair<std::string, Points<T>>>;
using Sizes = Named<std::int64_t>;  // by the name of a dim
using Contents = Named<Dims>;       // by the name of an input

template <class T>
const Points<T>* find(const Named<T>& all, const std::string& name) {
    for (const auto& [own, points] : all) {
        if (own == name) return &points;
    }
    return nullptr;
}

std::int64_t whole_blocks(std::int64_t rows) { return (rows + block_rows - 1) / block_rows * block_rows; }

std::string tuple_text(const Dims& values) {
    std::string text;
    for (const std::int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
    return "(" + text + (values.size() == 1 ? ",)" : ")");
}

std::string names_of(const Sizes& sizes) {
    std::vector<std::string> names;
    for (const auto& [name, points] : sizes) names.push_back(name);
    return joined(names);
}

InputProfile profile_of(const Points<Dims>& points, bool values) {
    InputProfile made{points[0], points[1], points[2], values};
    made.check();
    return made;
}

Points<Dims> dims_of(const TensorSpec& tensor, const Sizes& sizes) {
    Points<Dims> points;
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
        const std::string& name = tensor.names[axis];
        const auto* size = name.empty() ? nullptr : find(sizes, name);
        if (!name.empty() && size == nullptr) {
            throw EngineError("input " + tensor.name + " has the dim " + name + ", but sizes are known of " +
                              names_of(sizes) + " only: rebuild the bundle with an exporter of this version");
        }
        for (std::size_t at = 0; at < points.size(); ++at) {
            points[at].push_back(size == nullptr ? tensor.shape[axis] : (*size)[at]);
        }
    }
    return points;
}

// Every input that varies or sizes others.
EngineProfile profile_of(const std::vector<TensorSpec>& inputs, const Sizes& sizes,
                         const Contents& contents) {
    EngineProfile made;
    for (const TensorSpec& tensor : inputs) {
        const auto varies = [](const std::string& name) { return !name.empty(); };
        if (const auto* content = find(contents, tensor.name)) {
            made.emplace_back(tensor.name, profile_of(*content, true));
        } else if (std::any_of(tensor.names.begin(), tensor.names.end(), varies)) {
            made.emplace_back(tensor.name, profile_of(dims_of(tensor, sizes), false));
        }
    }
    return made;
}

// Sizes of a bundle's graphs at the three points; why they are these is in runtime/tensorrt/plan.py.
class Planner {
public:
    Planner(const Manifest& manifest, const EnginePlan& plan, const Amount& usual)
        : manifest_(manifest),
          limits_(plan.limits),
          visual_(plan.visual),
          usual_(usual),
          capacity_(plan.capacity),
          longest_(std::min(limits_.max_images * visual_.most_rows + limits_.max_prompt, capacity_)),
          // One usual image, and a quarter of the text there may be.
          usual_prompt_(std::min(visual_.rows + std::max(1, limits_.max_prompt / 4), capacity_ - 1)) {}

    GraphPlan graph(const std::string& name) const {
        const auto found = manifest_.graphs.find(name);
        if (found == manifest_.graphs.end()) {
            throw BundleError("bundle.json.graphs has no " + name + ": " + rebuild_bundle);
        }
        const GraphInfo& info = found->second;
        GraphPlan plan{name, info.file, info.precision, {}, {"all"}};
        if (name == contract::embed_tokens) {
            plan.profiles = {profile_of(info.inputs, embed(), {})};
        } else if (name == contract::vision_encoder || name == contract::vision_encoder_fopru) {
            plan.profiles = {profile_of(info.inputs, vision(), contents())};
        } else {
            plan.profiles = {profile_of(info.inputs, prefill(), contents()),
                             profile_of(info.inputs, decode(), contents())};
            plan.profile_names = {"prefill", "decode"};
        }
        return plan;
    }

private:
    Sizes vision() const {
        const std::int64_t most = most_units;
        const Points<std::int64_t> units = {1, std::min(visual_.units, most),
                                            std::min(limits_.max_images * visual_.most_units, most)};
        const std::int64_t least = manifest_.layout->unit_tokens() ? visual_.tokens : 1;
        return {{"images", units},
                {"units", units},
                {"tokens", {least, visual_.tokens, visual_.most_tokens}},
                {"windows",
                 {1, std::max<std::int64_t>(1, visual_.windows),
                  std::max<std::int64_t>(1, visual_.most_windows)}}};
    }

    Sizes embed() const {
        return {{"batch", {1, 1, 1}}, {"seq", {1, std::min(usual_prompt_, longest_), longest_}}};
    }

    // `total` is past and new rows at each point, as the builder checks it there.
    Sizes prefill() const {
        const std::int64_t rows = std::min(prefill_rows, longest_), usual = std::min(rows, usual_prompt_);
        const std::int64_t past = whole_blocks(capacity_);
        return {{"batch", {1, 1, 1}},
                {"seq", {1, usual, rows}},
                {"past", {0, 0, past}},
                {"total", {1, usual, past + rows}}};
    }

    Sizes decode() const {
        const std::int64_t last = whole_blocks(capacity_);
        const std::int64_t usual = std::min(capacity_ - 1, usual_prompt_ + limits_.max_new_tokens / 2);
        return {{"batch", {1, 1, 1}},
                {"seq", {1, 1, 1}},
                {"past", {1, usual, last}},
                {"total", {2, usual + 1, last + 1}}};
    }

    Contents contents() const {
        const std::int64_t columns = visual_.columns;
        const std::int64_t most = std::min(most_kept / columns * columns, kept(visual_.most_tokens));
        if (most < columns) {
            throw EngineError("a grid row has " + std::to_string(columns) +
                              " tokens, but TensorRT's TopK takes " + std::to_string(most_kept) +
                              " at most: build the bundle with strategy \"rank\"");
        }
        const std::int64_t usual = std::max(columns, std::min(usual_kept(), most));
        return {{contract::num_keep, {Dims{columns}, Dims{usual}, Dims{most}}},
                {contract::grid, grid()},
                {contract::num_logits_to_keep, {Dims{1}, Dims{1}, Dims{1}}}};
    }

    // Rows and columns: of one token, of the usual picture, and as many as either may be.
    Points<Dims> grid() const {
        const double root = std::nearbyint(std::sqrt(static_cast<double>(visual_.tokens)));
        const std::int64_t rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(root));
        const std::int64_t most = std::max({rows, visual_.tokens / rows, visual_.most_tokens});
        return {Dims{1, 1}, Dims{rows, std::max<std::int64_t>(1, visual_.tokens / rows)}, Dims{most, most}};
    }

    // The host compares all rows of all tiles where they are stitched, whatever the ratio.
    bool stitched() const { return manifest_.pruning.row_scope == "stitched"; }

    std::int64_t kept(std::int64_t tokens) const {
        return stitched() ? tokens : at_ratio(tokens, limits_.max_ratio);
    }

    std::int64_t usual_kept() const {
        if (stitched()) return visual_.tokens;
        if (usual_.ratio) return at_ratio(visual_.tokens, *usual_.ratio);
        const std::int64_t share = usual_.tokens.value_or(1) / visual_.units;
        const std::int64_t own = std::max<std::int64_t>(1, std::min(share, visual_.tokens));
        return own / visual_.columns * visual_.columns;
    }

    std::int64_t at_ratio(std::int64_t tokens, double ratio) const {
        const std::int64_t columns = visual_.columns;
        if (columns > 1) return columns * kept_count(tokens / columns, ratio);
        if (manifest_.grid_input() && ratio < 1.0) return tokens;  // whole rows of a picture of any shape
        return kept_count(tokens, ratio);
    }

    const Manifest& manifest_;
    const EngineLimits& limits_;
    const VisualSizes& visual_;
    const Amount& usual_;
    std::int64_t capacity_, longest_, usual_prompt_;
};

std::string portable_of(const DecoderInfo& decoder) {
    std::vector<std::string> kinds;
    for (const auto& [graph, kind] : decoder.caches) {
        if (kind == contract::append) return graph;
        kinds.push_back(kind);
    }
    throw EngineError("the bundle's decoders grow their cache as " + joined(kinds) +
                      ", but TensorRT needs \"" + contract::append + "\": " + rebuild_bundle);
}

}  // namespace

void EngineLimits::check() const {
    const std::pair<const char*, int> counts[] = {{"max_images", max_images},
                                                  {"max_prompt", max_prompt},
                                                  {"max_new_tokens", max_new_tokens},
                                                  {"max_image_tokens", max_image_tokens}};
    for (const auto& [name, value] : counts) {
        if (value >= 1) continue;
        throw EngineError(std::string(name) + " is " + std::to_string(value) +
                          ", expected a number from 1 on: give more");
    }
    if (!(max_ratio >= least_ratio && max_ratio <= 1.0)) {
        throw EngineError("max_ratio is " + python_float(max_ratio) +
                          ", expected the greatest fraction kept, " + python_float(least_ratio) +
                          "..1: leave it out for 1");
    }
    if (ratio && !(*ratio > 0.0 && *ratio <= max_ratio)) {
        throw EngineError("ratio is " + python_float(*ratio) + ", expected a fraction kept in (0, " +
                          python_float(max_ratio) + "]: give that, or a greater max_ratio");
    }
}

void InputProfile::check() const {
    bool rising = minimum.size() == optimum.size() && optimum.size() == maximum.size();
    for (std::size_t at = 0; rising && at < minimum.size(); ++at) {
        rising = minimum[at] >= 0 && minimum[at] <= optimum[at] && optimum[at] <= maximum[at];
    }
    if (rising) return;
    throw EngineError("profile is " + tuple_text(minimum) + ", " + tuple_text(optimum) + ", " +
                      tuple_text(maximum) +
                      ", but minimum <= optimum <= maximum holds in every place: give larger limits");
}

EnginePlan plan_engines(const Manifest& manifest, const EngineLimits& limits, std::int64_t workspace) {
    limits.check();
    const std::string portable = portable_of(manifest.decoder);
    EnginePlan plan;
    plan.limits = limits;
    plan.workspace = workspace;
    plan.level = builder_level;
    Amount usual;
    try {
        usual = usual_amount(manifest.pruning, limits.ratio);
        if (usual.ratio && *usual.ratio > limits.max_ratio) usual = {limits.max_ratio, std::nullopt};
        plan.visual = visual_sizes(manifest, usual, limits.max_ratio, limits.max_image_tokens);
    } catch (const RequestError& error) {
        throw EngineError(error.what());
    }
    const std::int64_t asked =
        limits.max_images * plan.visual.most_rows + limits.max_prompt + std::int64_t{limits.max_new_tokens};
    // Every row has a position of its own but with M-RoPE, where the rows of an image share them.
    plan.capacity =
        manifest.decoder.position_axes == 1 ? std::min(asked, manifest.decoder.max_positions) : asked;
    if (plan.capacity < 2) {
        throw EngineError("the KV cache would have " + std::to_string(plan.capacity) +
                          " rows, expected 2 or more: give larger limits");
    }
    const Planner planner(manifest, plan, usual);
    plan.graphs.push_back(planner.graph(contract::vision_encoder_fopru));
    if (limits.unpruned) plan.graphs.push_back(planner.graph(contract::vision_encoder));
    plan.graphs.push_back(planner.graph(contract::embed_tokens));
    plan.graphs.push_back(planner.graph(portable));
    return plan;
}

}  // namespace fopru
