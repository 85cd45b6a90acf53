#include "backend/engine_visual.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace fopru {

namespace {

constexpr Grid usual_size = {768, 1024};  // (height, width)
constexpr int most_tiles = 12;            // along a side: no published layout cuts finer
constexpr std::int64_t most_stretched = 200;

struct Amounts {
    const Amount &usual, &most;
};

std::int64_t integer_root(std::int64_t value) {  // of numbers below 2**52
    auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(value)));
    while (root * root > value) --root;
    while ((root + 1) * (root + 1) <= value) ++root;
    return root;
}

// Rows of an image in the prompt: kept tokens, prefix rows and, at most, newlines.
std::int64_t rows_of(const ImagePlan& plan, const Amount& amount, int prefix, const PruningInfo& pruning) {
    Amount own = amount;
    if (own.tokens) own.tokens = std::min(*own.tokens, plan.prunable());
    const auto counts = pruning.row_scope == "stitched" ? stitched_counts(plan, own)
                                                        : unit_counts(plan, own, pruning.strategy == "row");
    const std::int64_t kept = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    return kept_placeholders(plan, kept, prefix, newline_policy(plan, kept, pruning));
}

// Pictures whose sides are whole tiles: every canvas of a tiling layout is one of them.
void add_most(VisualSizes& sizes, const Layout& layout, const PruningInfo& pruning, const Amount& most) {
    const auto shape = layout.pixel_shape();
    const std::int64_t tall = shape.at(shape.size() - 2), wide = shape.back();
    for (std::int64_t rows = 1; rows <= most_tiles; ++rows) {
        for (std::int64_t columns = 1; columns <= most_tiles; ++columns) {
            if (rows * tall > INT_MAX || columns * wide > INT_MAX) continue;
            ImagePlan plan;
            try {
                plan = layout.plan(static_cast<int>(rows * tall), static_cast<int>(columns * wide));
            } catch (const ImageError&) {  // more pixels than a layout takes
                continue;
            }
            sizes.most_units = std::max(sizes.most_units, static_cast<std::int64_t>(plan.units.size()));
            sizes.most_rows = std::max(sizes.most_rows, rows_of(plan, most, layout.prefix_tokens(), pruning));
        }
    }
}

// N of the largest picture; slivers keep one token across, whatever their length becomes.
std::int64_t largest(const OwnSizes& own) {
    const std::int64_t side = own.token_side();
    std::int64_t found = own.max_pixels() / side / side;
    for (std::int64_t aspect = 1; aspect <= most_stretched; ++aspect) {
        for (const std::int64_t pixels : {own.min_pixels(), 4 * own.max_pixels()}) {
            const std::int64_t height = std::max<std::int64_t>(1, integer_root(pixels / aspect));
            try {
                const Grid view =
                    own.view_pixels(static_cast<int>(height), static_cast<int>(height * aspect));
                found = std::max(found, view.first / side * (view.second / side));
            } catch (const ImageError&) {
                continue;
            }
        }
    }
    return found;
}

// Most windows of any grid of at most `tokens`, one side at most 200 times the other.
std::int64_t windows_of(std::int64_t tokens, std::int64_t window) {
    std::int64_t best = 0;
    const std::int64_t first = std::max<std::int64_t>(1, integer_root(tokens / most_stretched));
    for (std::int64_t rows = first; rows <= integer_root(tokens); ++rows) {
        const std::int64_t columns = std::min(tokens / rows, most_stretched * (rows + 1));
        best = std::max(best, ((rows - 1) / window + 1) * ((columns - 1) / window + 1));
    }
    return best;
}

// Images in their own size: N is bounded by `max_pixels` and by what the engine is built for.
VisualSizes own_sizes_of(const Manifest& manifest, const OwnSizes& own, const Amounts& amounts,
                         int max_tokens) {
    const Layout& layout = *manifest.layout;
    const PruningInfo& pruning = manifest.pruning;
    const std::int64_t most = std::min<std::int64_t>(largest(own), max_tokens);
    auto [height, width] = usual_size;
    ImagePlan picture = layout.plan(height, width);
    while (picture.units.at(0).tokens > most) {  // a smaller usual picture, of the same shape
        height = height * 9 / 10, width = width * 9 / 10;
        picture = layout.plan(height, width);
    }
    VisualSizes sizes;
    sizes.units = sizes.most_units = sizes.columns = 1;
    sizes.tokens = picture.units.at(0).tokens;
    sizes.most_tokens = sizes.most_rows = most;
    sizes.rows = rows_of(picture, amounts.usual, layout.prefix_tokens(), pruning);
    const double ratio = amounts.most.ratio.value_or(1.0);
    if (ratio < 1.0) {
        // Rows are rounded per picture, so that one of any shape keeps at most so many, and a row more. A row
        // is at most 200 times as long as the picture is high.
        const std::int64_t more = pruning.strategy == "row" ? integer_root(most_stretched * most) + 1 : 0;
        const auto kept = static_cast<std::int64_t>(std::ceil(static_cast<double>(most) * ratio));
        sizes.most_rows = std::min(most, kept + more);
    }
    if (own.window()) {
        sizes.windows = picture.inputs.at("window_tokens").shape.at(0);
        sizes.most_windows = windows_of(most, *own.window());
    }
    return sizes;
}

}  // namespace

Amount usual_amount(const PruningInfo& pruning, std::optional<double> ratio) {
    if (ratio) return {ratio, std::nullopt};
    if (!pruning.default_ratio && pruning.default_tokens) return {std::nullopt, pruning.default_tokens};
    return {pruning.default_ratio.value_or(1.0), std::nullopt};
}

VisualSizes visual_sizes(const Manifest& manifest, const Amount& usual, double max_ratio, int max_tokens) {
    const Layout& layout = *manifest.layout;
    const PruningInfo& pruning = manifest.pruning;
    const Amount most{max_ratio, std::nullopt};
    if (const OwnSizes* own = layout.own_sizes()) {
        return own_sizes_of(manifest, *own, {usual, most}, max_tokens);
    }
    const ImagePlan picture = layout.plan(usual_size.first, usual_size.second);
    VisualSizes sizes;
    sizes.units = static_cast<std::int64_t>(picture.units.size());
    sizes.tokens = sizes.most_tokens = picture.units.at(0).tokens;
    sizes.rows = rows_of(picture, usual, layout.prefix_tokens(), pruning);
    sizes.columns = pruning.strategy == "row" && layout.unit_grid() ? layout.unit_grid()->second : 1;
    add_most(sizes, layout, pruning, most);
    return sizes;
}

}  // namespace fopru
