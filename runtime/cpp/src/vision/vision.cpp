#include "vision/vision.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "bundle/contract.h"
#include "vision/encoder_calls.h"
#include "vision/gather.h"

namespace fopru {

namespace {

constexpr const char* by_graph = "graph";

using Indices = std::vector<std::int64_t>;
using Images = std::vector<const PreparedImage*>;

// What a graph gave, by image and unit: which rows of its output go on, kept positions, scores.
struct Found {
    std::vector<std::vector<Part>> features;
    std::vector<std::vector<Indices>> kept;
    std::vector<std::vector<std::vector<float>>> scores;
    bool scored = false;
};

std::string number(std::int64_t value) { return std::to_string(value); }

Indices counted(std::int64_t count) {
    Indices all(static_cast<std::size_t>(count));
    std::iota(all.begin(), all.end(), 0);
    return all;
}

// Rows of a unit: the prefix, and tokens behind it.
Indices after_prefix(std::int64_t prefix, const Indices& tokens) {
    Indices rows = counted(prefix);
    for (const std::int64_t token : tokens) rows.push_back(prefix + token);
    return rows;
}

void check_counts(const ImagePlan& plan, const Indices& counts) {
    if (counts.size() != plan.units.size()) {
        throw RequestError("got " + std::to_string(counts.size()) + " counts for an image that is seen in " +
                           std::to_string(plan.units.size()) + " parts: make them with plan_pruning");
    }
    for (std::size_t place = 0; place < counts.size(); ++place) {
        const std::int64_t total = plan.units[place].prunable(), count = counts[place];
        if (count == 0 && total == 0) continue;
        if (count < 1 || count > total) {
            throw RequestError("cannot keep " + number(count) +
                               " tokens: " + (counts.size() == 1 ? "an image" : "this part of the image") +
                               " has " + number(total) + ", give 1.." + number(total));
        }
    }
}

// The overview's own count is checked where its rows are chosen.
void check_stitched(const ImagePlan& plan, const Indices& counts) {
    if (counts.size() != 2) {
        throw RequestError(
            "got " + std::to_string(counts.size()) +
            " counts for an image of which rows of all tiles are compared, expected 2 (the overview's, "
            "and all tiles' together): make them with plan_pruning");
    }
    if (!plan.overview)
        throw RequestError("an image of tiles has no overview: make its plan with the layout");
    const auto [rows, columns] = stitched_grid(plan);
    const std::int64_t total = std::int64_t{rows} * columns;
    if (counts[1] != total && (counts[1] < 1 || counts[1] > total || counts[1] % columns != 0)) {
        throw RequestError("cannot keep " + number(counts[1]) + " tokens of the tiles: give whole rows of " +
                           number(columns) + ", up to " + number(total));
    }
}

struct Asked {
    std::string selector;
    std::int64_t keep;
    std::uint64_t seed;
};

// A host selector on the valid tokens of a unit, which has scores for all of them.
Indices select_valid(const Unit& unit, const std::vector<float>& scores, const Asked& asked) {
    Indices valid = unit.valid_indices();
    if (valid.empty()) return valid;
    std::vector<float> own;
    own.reserve(valid.size());
    for (const std::int64_t token : valid) own.push_back(scores.at(static_cast<std::size_t>(token)));
    Choice choice;
    choice.scores = own.data();
    choice.tokens = static_cast<std::int64_t>(own.size());
    choice.grid = unit.valid_grid();
    choice.keep = asked.keep;
    choice.seed = asked.seed;
    Indices chosen = select_tokens(asked.selector, choice);
    for (std::int64_t& token : chosen) token = valid.at(static_cast<std::size_t>(token));
    return chosen;
}

}  // namespace

Indices EncodedImage::kept_indices() const {
    Indices all;
    std::int64_t start = 0;
    for (std::size_t unit = 0; unit < kept.size(); ++unit) {
        for (const std::int64_t token : kept[unit]) all.push_back(start + token);
        start += plan.units[unit].tokens;
    }
    return all;
}

struct VisionEncoder::State {
    State(Backend& given, OpenGraph opener, const Manifest& about,
          const std::optional<std::vector<float>>& newline)
        : backend(given),
          open(std::move(opener)),
          manifest(about),
          prefix(about.layout->prefix_tokens()),
          width(about.decoder.hidden_size),
          nothing(upload_rows(given, std::vector<float>(static_cast<std::size_t>(prefix * width)), width)) {
        if (newline) newline_rows = upload_rows(backend, *newline, width);
    }

    // What is there of units that are padding alone, which are not encoded: no token of theirs is ever looked
    // at.
    Found padding(const Images& images) const {
        Found found;
        for (const PreparedImage* image : images) {
            const std::size_t units = image->plan.units.size();
            found.features.emplace_back(units, Part{nothing, std::nullopt});
            found.kept.emplace_back(units);
            found.scores.emplace_back();
            for (const Unit& unit : image->plan.units) {
                found.scores.back().emplace_back(static_cast<std::size_t>(unit.tokens));
            }
        }
        return found;
    }

    // K as the graph counts: whole rows of the grid for `row`, padding at their ends included.
    std::int64_t graph_keep(const Unit& unit, std::int64_t count) const {
        const std::optional<Grid> valid = unit.valid_grid();
        if (manifest.pruning.strategy != "row" || !unit.grid || !valid) return count;
        const std::int64_t columns = valid->second;
        if (columns == 0 || count % columns != 0) {
            throw RequestError("strategy \"row\" keeps whole rows of " + number(columns) + " tokens, not " +
                               number(count) + ": give a multiple");
        }
        return count / columns * unit.grid->second;
    }

    Outputs run(const std::string& graph, const std::vector<Job>& jobs) {
        if (jobs.empty()) return {};
        return run_jobs(backend, open(graph), manifest, graph, jobs);
    }

    Found pruned_by_graph(const Images& images, const Selection& selection) {
        std::vector<Job> jobs;
        for (std::size_t image = 0; image < images.size(); ++image) {
            for (std::size_t unit = 0; unit < selection.counts[image].size(); ++unit) {
                const std::int64_t count = selection.counts[image][unit];
                if (count == 0) continue;
                const std::int64_t keep = graph_keep(images[image]->plan.units[unit], count);
                jobs.push_back({image, unit, images[image], keep});
            }
        }
        Outputs outputs = run(contract::vision_encoder_fopru, jobs);
        Found found = padding(images);
        found.scored = true;
        for (auto& [place, out] : outputs) {
            const auto [image, unit] = place;
            const Indices valid = images[image]->plan.units[unit].valid_indices();
            Indices shown, rows = counted(prefix);
            for (std::size_t row = 0; row < out.kept.size(); ++row) {
                if (!std::binary_search(valid.begin(), valid.end(), out.kept[row])) continue;
                shown.push_back(out.kept[row]);
                rows.push_back(prefix + static_cast<std::int64_t>(row));
            }
            Part part{out.features, std::nullopt};
            // Whole rows of a tile may have padding at its sides.
            if (shown.size() != out.kept.size()) part.index = std::move(rows);
            found.features[image][unit] = std::move(part);
            found.kept[image][unit] = std::move(shown);
            found.scores[image][unit] = std::move(out.scores);
        }
        return found;
    }

    // Features [p + N, D] and scores of every unit with nothing pruned; scores are zeros where there are
    // none.
    Found whole(const Images& images, const std::string& graph) {
        std::vector<Job> jobs;
        for (std::size_t image = 0; image < images.size(); ++image) {
            for (std::size_t unit = 0; unit < images[image]->plan.units.size(); ++unit) {
                const Unit& own = images[image]->plan.units[unit];
                if (own.prunable() == 0) continue;
                const bool pruned = graph == contract::vision_encoder_fopru;
                jobs.push_back(
                    {image, unit, images[image], pruned ? std::make_optional(own.tokens) : std::nullopt});
            }
        }
        Found found = padding(images);
        found.scored = graph == contract::vision_encoder_fopru;
        for (auto& [place, out] : run(graph, jobs)) {
            found.features[place.first][place.second].rows = out.features;
            if (!out.scores.empty()) found.scores[place.first][place.second] = out.scores;
        }
        return found;
    }

    // The prefix rows and kept rows of whole outputs.
    void cut(Found& found) const {
        for (std::size_t image = 0; image < found.features.size(); ++image) {
            for (std::size_t unit = 0; unit < found.features[image].size(); ++unit) {
                found.features[image][unit].index = after_prefix(prefix, found.kept[image][unit]);
            }
        }
    }

    Found pruned_by_host(const Images& images, const Selection& selection, bool stitched,
                         const std::string& graph) {
        Found found = whole(images, graph);
        std::uint64_t seed = selection.seed;
        const std::string name = selection.selector == by_graph ? "row" : selection.selector;
        for (std::size_t image = 0; image < images.size(); ++image) {
            const ImagePlan& plan = images[image]->plan;
            const auto& own = found.scores[image];
            const Indices& counts = selection.counts[image];
            if (stitched && plan.mosaic && plan.overview) {
                const std::size_t overview = static_cast<std::size_t>(*plan.overview);
                std::vector<Indices> rows = stitched_rows_kept(plan, own, counts[1]);
                rows.at(overview) = select_valid(plan.units[overview], own[overview], {"row", counts[0], 0});
                found.kept[image] = std::move(rows);
                continue;
            }
            for (std::size_t unit = 0; unit < plan.units.size(); ++unit) {
                // Another seed per unit, so that "random" does not keep the same places of every one.
                found.kept[image][unit] =
                    select_valid(plan.units[unit], own[unit], {name, counts[unit], seed++});
            }
        }
        cut(found);
        return found;
    }

    std::vector<EncodedImage> joined(const Images& images, Found found) {
        std::vector<EncodedImage> encoded;
        for (std::size_t image = 0; image < images.size(); ++image) {
            EncodedImage made;
            made.plan = images[image]->plan;
            std::int64_t total = 0;
            for (const Indices& kept : found.kept[image]) total += static_cast<std::int64_t>(kept.size());
            const std::string newline = newline_policy(made.plan, total, manifest.pruning);
            made.assembly = assemble(made.plan, found.kept[image], static_cast<int>(prefix), newline);
            std::vector<Part> parts = std::move(found.features[image]);
            if (newline_rows.buffer != nullptr)
                parts.push_back({newline_rows, std::nullopt});  // the last row
            made.features = gather(backend, parts, made.assembly.source, width);
            made.kept = std::move(found.kept[image]);
            if (found.scored) made.scores = std::move(found.scores[image]);
            encoded.push_back(std::move(made));
        }
        return encoded;
    }

    Backend& backend;
    const OpenGraph open;
    const Manifest& manifest;
    const std::int64_t prefix, width;
    const Rows nothing;  // [p, D] of zeros
    Rows newline_rows;   // [1, D], or none
};

VisionEncoder::VisionEncoder(Backend& backend, OpenGraph open, const Manifest& manifest,
                             std::optional<std::vector<float>> newline)
    : state_(std::make_unique<State>(backend, std::move(open), manifest, newline)) {}

VisionEncoder::~VisionEncoder() = default;

std::string VisionEncoder::graph_for(const Selection& selection) const {
    return selection.selector == by_graph || needs_scores(selection.selector) ? contract::vision_encoder_fopru
                                                                              : contract::vision_encoder;
}

std::vector<EncodedImage> VisionEncoder::encode(const Images& images, const Selection& selection) {
    check_selector(selection.selector);
    if (selection.counts.size() != images.size()) {
        throw RequestError("got counts for " + std::to_string(selection.counts.size()) +
                           " images, but there are " + std::to_string(images.size()) +
                           ": make them with plan_pruning");
    }
    const bool stitched = stitched_rows(selection.selector, state_->manifest.pruning);
    for (std::size_t image = 0; image < images.size(); ++image) {
        const ImagePlan& plan = images[image]->plan;
        if (stitched && plan.mosaic) {
            check_stitched(plan, selection.counts[image]);
        } else {
            check_counts(plan, selection.counts[image]);
        }
    }
    if (selection.selector == by_graph && !stitched) {
        return state_->joined(images, state_->pruned_by_graph(images, selection));
    }
    return state_->joined(images, state_->pruned_by_host(images, selection, stitched, graph_for(selection)));
}

std::vector<EncodedImage> VisionEncoder::encode_unpruned(const Images& images) {
    Found found = state_->whole(images, contract::vision_encoder);
    for (std::size_t image = 0; image < images.size(); ++image) {
        const std::vector<Unit>& units = images[image]->plan.units;
        for (std::size_t unit = 0; unit < units.size(); ++unit) {
            found.kept[image][unit] = units[unit].valid_indices();
        }
    }
    state_->cut(found);
    return state_->joined(images, std::move(found));
}

}  // namespace fopru
