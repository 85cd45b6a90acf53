// LLaVA-NeXT: the whole image once, then the tiles of the canvas ("pinpoint") that fits it best, padded with
// black. The tokens of the tiles are one wide grid in the prompt, without its padding; a newline ends each
// line.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/words.h"
#include "layout/fields.h"
#include "layout/geometry.h"
#include "layout/layouts.h"

namespace fopru {

namespace {

// Of tokens or pixels, ends excluded.
struct Box {
    std::int64_t top, bottom, left, right;
};

class AnyresLayout final : public Layout {
public:
    AnyresLayout(const Json& json, const std::string& where);

    const char* kind() const override { return "anyres"; }
    bool masked() const override { return true; }
    bool has_newlines() const override { return true; }
    std::optional<std::int64_t> unit_tokens() const override { return product(grid_[0], grid_[1]); }
    std::optional<std::int64_t> image_tokens() const override { return std::nullopt; }
    std::optional<Grid> unit_grid() const override { return grid_of(grid_); }
    std::vector<std::int64_t> pixel_shape() const override { return {-1, 3, tile_[0], tile_[1]}; }
    ImagePlan plan(int height, int width) const override;
    std::vector<Image> views(const Image& image, int resample) const override;

private:
    void check_values() const;
    Pair canvas_of(const Pair& size) const;
    Unit tile_unit(const Box& box) const;
    void add_lines(ImagePlan& plan, const Box& box, std::int64_t across) const;

    Pair tile_{}, grid_{};
    std::vector<Pair> pinpoints_;
};

// (height, width) of an image made as large as the canvas allows, its aspect ratio kept.
Pair fitted(const Pair& size, const Pair& canvas) {
    const double across = quotient(canvas[1], size[1]), down = quotient(canvas[0], size[0]);
    if (across < down)
        return {std::min(ceiling(static_cast<double>(size[0]) * across), canvas[0]), canvas[1]};
    return {canvas[0], std::min(ceiling(static_cast<double>(size[1]) * down), canvas[1])};
}

// Half of the padding, rounded down, is cut on both sides, so that a line of it may stay. Of a sliver nothing
// may be left.
Box unpadded(const Pair& grid, const Pair& size) {
    const auto [rows, columns] = grid;
    const auto [height, width] = size;
    if (quotient(width, height) > quotient(columns, rows)) {
        const double shown = static_cast<double>(height) * quotient(columns, width);
        const std::int64_t cut = floor_half(rows - truncated(seven_decimals(shown)));
        return {cut, rows - cut, 0, columns};
    }
    const double shown = static_cast<double>(width) * quotient(rows, height);
    const std::int64_t cut = floor_half(columns - truncated(seven_decimals(shown)));
    return {0, rows, cut, columns - cut};
}

AnyresLayout::AnyresLayout(const Json& json, const std::string& where) {
    read_layout(json, where,
                {pair_field("tile", tile_), pair_field("grid", grid_), pairs_field("pinpoints", pinpoints_)});
    check_values();
}

void AnyresLayout::check_values() const {
    const std::string end = std::string(": ") + rebuild_bundle;
    for (const auto& [name, pair] : {std::pair("tile", tile_), std::pair("grid", grid_)}) {
        if (std::min(pair[0], pair[1]) < 1) {
            throw BundleError("layout." + std::string(name) + " is " + list_text(pair) +
                              ", expected two numbers from 1" + end);
        }
    }
    if (pinpoints_.empty()) {
        throw BundleError("layout.pinpoints is empty, expected at least one [height, width]" + end);
    }
    for (const auto& [height, width] : pinpoints_) {
        const std::string got = "layout.pinpoints has " + list_text(Pair{height, width}) + ", expected ";
        if (std::min(height, width) < 1 || height % tile_[0] != 0 || width % tile_[1] != 0) {
            throw BundleError(got + "multiples of the tile " + list_text(tile_) + end);
        }
        if (product(height, width) > max_resized_pixels) {
            throw BundleError(got + std::to_string(max_resized_pixels) + " pixels at most" + end);
        }
    }
}

// The pinpoint that keeps most pixels of the image; of several, the one that wastes the fewest, then the
// first.
Pair AnyresLayout::canvas_of(const Pair& size) const {
    check_size(size);
    const auto [height, width] = size;
    Pair best = pinpoints_[0];
    std::int64_t most = 0, least_waste = std::numeric_limits<std::int64_t>::max();
    for (const auto& canvas : pinpoints_) {
        const double scale = std::min(quotient(canvas[1], width), quotient(canvas[0], height));
        const std::int64_t shown_height = truncated(static_cast<double>(height) * scale);
        const std::int64_t shown_width = truncated(static_cast<double>(width) * scale);
        const std::int64_t pixels = std::min(product(shown_width, shown_height), product(width, height));
        const std::int64_t waste = canvas[0] * canvas[1] - pixels;
        if (pixels > most || (pixels == most && waste < least_waste)) {
            best = canvas;
            most = pixels;
            least_waste = waste;
        }
    }
    // Pillow resizes across first: in between, a standing sliver has its old height at the new width.
    check_resized(size, {height, std::max(tile_[1], fitted(size, best)[1])});
    // The overview; Python is stopped by its memory alone.
    check_resized(size, tile_);
    return best;
}

ImagePlan AnyresLayout::plan(int height, int width) const {
    const Pair size = {height, width}, canvas = canvas_of(size);
    const std::int64_t down = canvas[0] / tile_[0], across = canvas[1] / tile_[1];
    const std::int64_t unit = product(grid_[0], grid_[1]);
    check_tokens(size, down * across + 1, unit);
    const Box box = unpadded({down * grid_[0], across * grid_[1]}, size);
    ImagePlan plan;
    plan.units.push_back({unit, grid_of(grid_), std::nullopt});
    for (std::int64_t i = 0; i < down; ++i) {
        for (std::int64_t j = 0; j < across; ++j) {
            const std::int64_t y = grid_[0] * i, x = grid_[1] * j;
            plan.units.push_back(tile_unit({box.top - y, box.bottom - y, box.left - x, box.right - x}));
        }
    }
    plan.sequence = counted(unit);
    plan.lines = std::vector<std::int64_t>(plan.sequence.size(), -1);
    add_lines(plan, box, across);
    plan.runs = plan.spans = {static_cast<std::int64_t>(plan.sequence.size())};
    plan.offsets = running_offsets(plan.runs);
    plan.overview = 0;
    plan.mosaic = grid_of({down, across});
    return plan;
}

// The box is that of the picture, counted from the corner of the tile.
Unit AnyresLayout::tile_unit(const Box& box) const {
    const auto [rows, columns] = grid_;
    const auto inside = [](std::int64_t edge, std::int64_t most) {
        return static_cast<int>(std::clamp<std::int64_t>(edge, 0, most));
    };
    const std::array<int, 4> valid = {inside(box.top, rows), inside(box.bottom, rows),
                                      inside(box.left, columns), inside(box.right, columns)};
    Unit unit{rows * columns, grid_of(grid_), std::nullopt};
    if (valid != std::array<int, 4>{0, static_cast<int>(rows), 0, static_cast<int>(columns)})
        unit.valid = valid;
    return unit;
}

void AnyresLayout::add_lines(ImagePlan& plan, const Box& box, std::int64_t across) const {
    const auto [rows, columns] = grid_;
    const auto add = [&plan](std::int64_t row, std::int64_t line) {
        plan.sequence.push_back(row);
        plan.lines->push_back(line);
    };
    for (std::int64_t y = box.top; y < box.bottom; ++y) {
        for (std::int64_t x = box.left; x < box.right; ++x) {
            const std::int64_t tile = 1 + y / rows * across + x / columns;
            add((tile * rows + y % rows) * columns + x % columns, y - box.top);
        }
        add(newline_row, y - box.top);
    }
}

std::vector<Image> AnyresLayout::views(const Image& image, int resample) const {
    const Pair size = {image.height, image.width}, canvas = canvas_of(size), inner = fitted(size, canvas);
    Image picture(static_cast<int>(canvas[0]), static_cast<int>(canvas[1]));
    paste(picture, resized(image, inner, resample), {(canvas[0] - inner[0]) / 2, (canvas[1] - inner[1]) / 2});
    std::vector<Image> views;
    views.push_back(resized(image, tile_, resample));
    cut_tiles(picture, tile_, views);
    return views;
}

}  // namespace

std::unique_ptr<const Layout> make_anyres(const Json& json, const std::string& where) {
    return std::make_unique<AnyresLayout>(json, where);
}

}  // namespace fopru
