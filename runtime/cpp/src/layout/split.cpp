// Idefics3 and SmolVLM: square tiles of the enlarged picture, then the whole of it, each named in the prompt.
#include <algorithm>

#include "base/error.h"
#include "base/words.h"
#include "layout/fields.h"
#include "layout/geometry.h"
#include "layout/layouts.h"

namespace fopru {

namespace {

constexpr std::int64_t max_edge = 4096;  // the processors never go beyond it, whatever `longest_edge` says
constexpr std::size_t max_text = std::size_t{1} << 26;  // bytes; Python has no such limit but its memory

class SplitLayout final : public Layout {
public:
    SplitLayout(const Json& json, const std::string& where);

    const char* kind() const override { return "split"; }
    std::optional<std::int64_t> unit_tokens() const override { return product(grid_[0], grid_[1]); }
    std::optional<std::int64_t> image_tokens() const override { return std::nullopt; }
    std::optional<Grid> unit_grid() const override { return grid_of(grid_); }
    std::vector<std::int64_t> pixel_shape() const override { return {-1, 3, tile_, tile_}; }
    ImagePlan plan(int height, int width) const override;
    std::vector<Image> views(const Image& image, int resample) const override;

private:
    void check_values() const;
    std::array<Pair, 2> resizes(const Pair& size) const;  // one after the other; ImageError
    Pair first_size(const Pair& size) const;
    Pair whole_tiles(const Pair& size) const;
    std::int64_t up(std::int64_t edge) const { return ceiling(quotient(edge, tile_)) * tile_; }
    // None where the picture is one tile.
    std::optional<Pair> mosaic_of(const Pair& size) const;
    std::string prompt_text(const std::optional<Pair>& mosaic) const;

    std::int64_t tile_ = 0;
    Pair grid_{};
    Sizes resize_;
    bool splitting_ = false;
    std::string tile_text_, row_end_, overview_text_, single_text_;
};

// Rounded up to an even number, which 0 is; and then at least 1.
std::int64_t even(std::int64_t edge) { return std::max<std::int64_t>(edge + edge % 2, 1); }

// The longer edge at `max_edge` at most; the shorter one need not stay even.
Pair bounded(const Pair& size) {
    const auto [height, width] = size;
    const double ratio = quotient(width, height);
    const auto edge = static_cast<double>(max_edge);
    if (width >= height && width > max_edge)
        return {std::max<std::int64_t>(truncated(edge / ratio), 1), max_edge};
    if (height > width && height > max_edge)
        return {max_edge, std::max<std::int64_t>(truncated(edge * ratio), 1)};
    return size;
}

SplitLayout::SplitLayout(const Json& json, const std::string& where) {
    read_layout(json, where,
                {whole_field("tile", tile_), pair_field("grid", grid_), sizes_field("resize", resize_),
                 required_field("splitting", splitting_), required_field("tile_text", tile_text_),
                 required_field("row_end", row_end_), required_field("overview_text", overview_text_),
                 required_field("single_text", single_text_)});
    check_values();
}

void SplitLayout::check_values() const {
    const std::string end = std::string(": ") + rebuild_bundle;
    if (tile_ < 1)
        throw BundleError("layout.tile is " + std::to_string(tile_) + ", expected a number from 1" + end);
    if (std::min(grid_[0], grid_[1]) < 1) {
        throw BundleError("layout.grid is " + list_text(grid_) + ", expected two numbers from 1" + end);
    }
    const bool known = resize_.has_exactly({"longest_edge"}) || resize_.has_exactly({"height", "width"});
    if (!known || resize_.smallest() < 1) {
        throw BundleError("layout.resize is " + resize_.text() +
                          R"(, expected {"longest_edge": n} or {"height": h, "width": w})" + end);
    }
    for (const auto& [name, text] :
         {std::pair("tile_text", &tile_text_), std::pair("overview_text", &overview_text_),
          std::pair("single_text", &single_text_)}) {
        if (count_of(*text, image_slot) != 1) {
            throw BundleError("layout." + std::string(name) + " is " + python_repr(*text) +
                              ", expected {image} exactly once" + end);
        }
    }
    if (row_end_.find(image_slot) != std::string::npos) {
        throw BundleError("layout.row_end is " + python_repr(row_end_) + ", expected text without {image}" +
                          end);
    }
}

std::array<Pair, 2> SplitLayout::resizes(const Pair& size) const {
    check_size(size);
    const Pair first = first_size(size), second = splitting_ ? whole_tiles(first) : Pair{tile_, tile_};
    // Pillow resizes across first, so that in between a picture has its old height at the new width.
    for (const Pair& step : {Pair{size[0], first[1]}, first, Pair{first[0], second[1]}, second}) {
        check_resized(size, step);
    }
    return {first, second};
}

Pair SplitLayout::first_size(const Pair& size) const {
    if (resize_.find("height") != nullptr) return {resize_.at("height"), resize_.at("width")};
    const auto [height, width] = size;
    const std::int64_t edge = resize_.at("longest_edge");
    const double ratio = quotient(width, height);
    if (width >= height) return bounded({even(truncated(static_cast<double>(edge) / ratio)), edge});
    return bounded({edge, even(truncated(static_cast<double>(edge) * ratio))});
}

// Larger, to whole tiles: first the longer edge, the other with it, then the other.
Pair SplitLayout::whole_tiles(const Pair& size) const {
    const double ratio = quotient(size[1], size[0]);
    if (size[1] >= size[0]) {
        const std::int64_t width = up(size[1]);
        return {up(truncated(static_cast<double>(width) / ratio)), width};
    }
    const std::int64_t height = up(size[0]);
    return {height, up(truncated(static_cast<double>(height) * ratio))};
}

std::optional<Pair> SplitLayout::mosaic_of(const Pair& size) const {
    const Pair mosaic = {size[0] / tile_, size[1] / tile_};
    return mosaic == Pair{1, 1} ? std::nullopt : std::optional<Pair>(mosaic);
}

ImagePlan SplitLayout::plan(int height, int width) const {
    const Pair size = {height, width};
    const auto mosaic = mosaic_of(resizes(size)[1]);
    const std::int64_t units = mosaic ? (*mosaic)[0] * (*mosaic)[1] + 1 : 1,
                       unit = product(grid_[0], grid_[1]);
    check_tokens(size, units, unit);
    const std::size_t longest = tile_text_.size() + row_end_.size() + 2 * sizeof("4194304");
    if (longest * static_cast<std::size_t>(units) > max_text) {
        throw ImageError("an image of " + std::to_string(width) + " x " + std::to_string(height) +
                         " pixels would have more than " + std::to_string(max_text) +
                         " bytes of text in the prompt: " + rebuild_bundle);
    }
    ImagePlan plan;
    plan.units.assign(static_cast<std::size_t>(units), {unit, grid_of(grid_), std::nullopt});
    plan.text = prompt_text(mosaic);
    plan.runs.assign(static_cast<std::size_t>(units), unit);
    plan.spans = plan.runs;
    plan.sequence = counted(units * unit);
    plan.offsets = running_offsets(plan.runs);
    if (mosaic) {
        plan.overview = static_cast<int>(units - 1);
        plan.mosaic = grid_of(*mosaic);
    }
    return plan;
}

std::string SplitLayout::prompt_text(const std::optional<Pair>& mosaic) const {
    if (!mosaic) return single_text_;
    std::string text;
    for (std::int64_t row = 1; row <= (*mosaic)[0]; ++row) {
        const std::string of_row = replaced(tile_text_, "{row}", std::to_string(row));
        for (std::int64_t column = 1; column <= (*mosaic)[1]; ++column) {
            text += replaced(of_row, "{column}", std::to_string(column));
        }
        text += row_end_;
    }
    return text + overview_text_;
}

std::vector<Image> SplitLayout::views(const Image& image, int resample) const {
    const auto [first, second] = resizes({image.height, image.width});
    Image picture = resized(resized(image, first, resample), second, resample);
    std::vector<Image> views;
    if (!mosaic_of(second)) {
        views.push_back(std::move(picture));
        return views;
    }
    cut_tiles(picture, {tile_, tile_}, views);
    // From the enlarged picture, not from the original: one resize more than the tiles have.
    views.push_back(resized(picture, {tile_, tile_}, resample));
    return views;
}

}  // namespace

std::unique_ptr<const Layout> make_split(const Json& json, const std::string& where) {
    return std::make_unique<SplitLayout>(json, where);
}

}  // namespace fopru
