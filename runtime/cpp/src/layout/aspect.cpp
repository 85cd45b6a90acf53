// InternVL: the picture is stretched to the canvas of whole tiles whose aspect ratio is closest, and cut; the
// whole of it comes last.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/words.h"
#include "layout/fields.h"
#include "layout/geometry.h"
#include "layout/layouts.h"

namespace fopru {

namespace {

// Python has no such limit; a canvas of more tiles would be looked for in a very long list.
constexpr std::int64_t most_tiles = 4096;

class AspectLayout final : public Layout {
public:
    AspectLayout(const Json& json, const std::string& where);

    const char* kind() const override { return "aspect"; }
    std::optional<std::int64_t> unit_tokens() const override { return product(grid_[0], grid_[1]); }
    std::optional<std::int64_t> image_tokens() const override { return std::nullopt; }
    std::optional<Grid> unit_grid() const override { return grid_of(grid_); }
    std::vector<std::int64_t> pixel_shape() const override { return {-1, 3, tile_, tile_}; }
    ImagePlan plan(int height, int width) const override;
    std::vector<Image> views(const Image& image, int resample) const override;

private:
    void check_values() const;
    Pair mosaic_of(const Pair& size) const;  // ImageError

    std::int64_t tile_ = 0;
    Pair grid_{}, tiles_{};
    std::string text_;
    std::vector<Pair> canvases_;  // (rows, columns): fewest tiles first, then the fewest columns
};

AspectLayout::AspectLayout(const Json& json, const std::string& where) {
    read_layout(json, where,
                {whole_field("tile", tile_), pair_field("grid", grid_), pair_field("tiles", tiles_),
                 required_field("text", text_)});
    check_values();
    for (std::int64_t columns = 1; columns <= tiles_[1]; ++columns) {
        for (std::int64_t rows = 1; rows <= tiles_[1] / columns; ++rows) {
            if (rows * columns >= tiles_[0]) canvases_.push_back({rows, columns});
        }
    }
    std::stable_sort(canvases_.begin(), canvases_.end(),
                     [](const Pair& a, const Pair& b) { return a[0] * a[1] < b[0] * b[1]; });
}

void AspectLayout::check_values() const {
    const std::string end = std::string(": ") + rebuild_bundle;
    if (tile_ < 1)
        throw BundleError("layout.tile is " + std::to_string(tile_) + ", expected a number from 1" + end);
    if (std::min(grid_[0], grid_[1]) < 1) {
        throw BundleError("layout.grid is " + list_text(grid_) + ", expected two numbers from 1" + end);
    }
    const auto tiles = "layout.tiles is " + list_text(tiles_);
    if (tiles_[0] < 1 || tiles_[0] > tiles_[1]) {
        throw BundleError(tiles + ", expected two numbers from 1, the smaller first" + end);
    }
    if (tiles_[1] > most_tiles) {
        throw BundleError(tiles + ", expected " + std::to_string(most_tiles) + " at most" + end);
    }
    if (count_of(text_, image_slot) != 1) {
        throw BundleError("layout.text is " + python_repr(text_) + ", expected {image} exactly once" + end);
    }
}

Pair AspectLayout::mosaic_of(const Pair& size) const {
    check_size(size);
    const auto [height, width] = size;
    Pair best = {1, 1};
    double least = std::numeric_limits<double>::infinity();
    const double tile_pixels = 0.5 * static_cast<double>(tile_ * tile_);
    for (const auto& canvas : canvases_) {
        const auto rows = static_cast<double>(canvas[0]), columns = static_cast<double>(canvas[1]);
        const double difference = std::abs(quotient(width, height) - columns / rows);
        // Of canvases that fit equally well, the larger one, unless it would be twice the picture.
        const bool filled = greater(product(width, height), tile_pixels * rows * columns);
        if (difference < least || (difference == least && filled)) {
            best = canvas;
            least = difference;
        }
    }
    // Pillow resizes across first: in between, a standing sliver has its old height at the new width.
    check_resized(size, {height, best[1] * tile_});
    check_resized(size, {best[0] * tile_, best[1] * tile_});
    return best;
}

ImagePlan AspectLayout::plan(int height, int width) const {
    const Pair mosaic = mosaic_of({height, width});
    const std::int64_t tiles = mosaic[0] * mosaic[1], units = tiles == 1 ? 1 : tiles + 1;
    const std::int64_t unit = product(grid_[0], grid_[1]);
    check_tokens({height, width}, units, unit);
    ImagePlan plan;
    plan.units.assign(static_cast<std::size_t>(units), {unit, grid_of(grid_), std::nullopt});
    plan.text = text_;
    plan.runs = plan.spans = {units * unit};
    plan.sequence = counted(units * unit);
    plan.offsets = running_offsets(plan.runs);
    if (units > 1) {
        plan.overview = static_cast<int>(units - 1);
        plan.mosaic = grid_of(mosaic);
    }
    return plan;
}

std::vector<Image> AspectLayout::views(const Image& image, int resample) const {
    const auto [rows, columns] = mosaic_of({image.height, image.width});
    std::vector<Image> views;
    if (rows * columns > 1) {
        cut_tiles(resized(image, {rows * tile_, columns * tile_}, resample), {tile_, tile_}, views);
    }
    views.push_back(resized(image, {tile_, tile_}, resample));
    return views;
}

}  // namespace

std::unique_ptr<const Layout> make_aspect(const Json& json, const std::string& where) {
    return std::make_unique<AspectLayout>(json, where);
}

}  // namespace fopru
