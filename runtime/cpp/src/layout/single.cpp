// One picture of one size per image (LLaVA-1.5): pad to square, resize, crop.
#include <algorithm>

#include "base/error.h"
#include "base/words.h"
#include "layout/fields.h"
#include "layout/geometry.h"
#include "layout/layouts.h"

namespace fopru {

namespace {

// Of a square that a picture is padded to. Python has no such limit but its memory.
constexpr std::int64_t max_square_pixels = std::int64_t{1} << 28;

class SingleLayout final : public Layout {
public:
    SingleLayout(const Json& json, const std::string& where);

    const char* kind() const override { return "single"; }
    int prefix_tokens() const override { return static_cast<int>(prefix_); }
    bool has_grid() const override { return grid_.has_value(); }
    std::optional<std::int64_t> unit_tokens() const override { return tokens_; }
    std::optional<std::int64_t> image_tokens() const override { return tokens_; }
    std::optional<Grid> unit_grid() const override { return unit_grid_; }
    std::vector<std::int64_t> pixel_shape() const override;
    ImagePlan plan(int height, int width) const override;
    std::vector<Image> views(const Image& image, int resample) const override;

private:
    void check_values() const;
    void check_image(const Pair& size) const;
    Pair resized_size(const Pair& size) const;
    Image padded(const Image& image) const;

    std::optional<Pair> grid_;
    std::optional<Grid> unit_grid_;
    std::int64_t tokens_ = 0, prefix_ = 0;
    Sizes resize_;
    std::optional<Sizes> crop_;
    std::optional<Levels> square_;  // the colour to pad with
};

SingleLayout::SingleLayout(const Json& json, const std::string& where) {
    read_layout(json, where,
                {pair_field("grid", grid_), whole_field("tokens", tokens_), sizes_field("resize", resize_),
                 sizes_field("crop", crop_), colour_field("pad_to_square", square_),
                 whole_field("prefix_tokens", prefix_, false)});
    check_values();
    if (grid_) unit_grid_ = grid_of(*grid_);
}

void SingleLayout::check_values() const {
    const std::string end = std::string(": ") + rebuild_bundle;
    const std::vector<std::string> fixed = {"height", "width"};
    if (!(resize_.has_exactly({"shortest_edge"}) || resize_.has_exactly(fixed)) || resize_.smallest() < 1) {
        throw BundleError("layout.resize is " + resize_.text() +
                          R"(, expected {"shortest_edge": n} or {"height": h, "width": w})" + end);
    }
    if (crop_ && (!crop_->has_exactly(fixed) || crop_->smallest() < 1)) {
        throw BundleError("layout.crop is " + crop_->text() +
                          R"(, expected {"height": h, "width": w} or null)" + end);
    }
    if (!crop_ && resize_.find("shortest_edge") != nullptr) {
        throw BundleError("layout.resize keeps the aspect ratio, so layout.crop must say the final size" +
                          end);
    }
    const auto level = [](std::int64_t value) { return value >= 0 && value <= 255; };
    if (square_ && !std::all_of(square_->begin(), square_->end(), level)) {
        throw BundleError("layout.pad_to_square is " + list_text(*square_) +
                          ", expected three numbers 0..255 or null" + end);
    }
    const auto grid = grid_ ? list_text(*grid_) : std::string();
    if (grid_ && std::min((*grid_)[0], (*grid_)[1]) < 1) {
        throw BundleError("layout.grid is " + grid + ", expected numbers from 1 on" + end);
    }
    const auto tokens = std::to_string(tokens_);
    if (tokens_ < 1 || prefix_ < 0) {
        throw BundleError("layout.tokens is " + tokens + " and layout.prefix_tokens " +
                          std::to_string(prefix_) + ", expected at least 1 and 0" + end);
    }
    if (grid_ && product((*grid_)[0], (*grid_)[1]) != tokens_) {
        throw BundleError("layout.grid is " + grid + ", which does not make layout.tokens " + tokens + end);
    }
}

std::vector<std::int64_t> SingleLayout::pixel_shape() const {
    const Sizes& last = crop_ ? *crop_ : resize_;
    return {-1, 3, last.at("height"), last.at("width")};
}

Pair SingleLayout::resized_size(const Pair& size) const {
    if (resize_.find("height") != nullptr) return {resize_.at("height"), resize_.at("width")};
    const auto [height, width] = size;
    const std::int64_t edge = resize_.at("shortest_edge");
    const std::int64_t longer = truncated(quotient(edge * std::max(height, width), std::min(height, width)));
    return width <= height ? Pair{longer, edge} : Pair{edge, longer};
}

void SingleLayout::check_image(const Pair& size) const {
    check_size(size);
    const std::int64_t side = std::max(size[0], size[1]);
    const Pair after = resized_size(square_ ? Pair{side, side} : size);
    check_resized(size, after);
    // Where it is larger than the picture, the crop is what needs the memory.
    if (crop_)
        check_resized(size,
                      {std::max(after[0], crop_->at("height")), std::max(after[1], crop_->at("width"))});
    check_tokens(size, 1, prefix_ + tokens_);
}

ImagePlan SingleLayout::plan(int height, int width) const {
    check_image({height, width});
    ImagePlan plan;
    plan.units.push_back({tokens_, unit_grid_, std::nullopt});
    plan.runs = plan.spans = {prefix_ + tokens_};
    plan.sequence = counted(plan.runs[0]);
    plan.offsets = running_offsets(plan.runs);
    return plan;
}

std::vector<Image> SingleLayout::views(const Image& image, int resample) const {
    check_image({image.height, image.width});
    const bool pad = square_ && image.height != image.width;
    const Image square = pad ? padded(image) : Image();
    const Image& picture = pad ? square : image;
    std::vector<Image> views;
    views.push_back(resized(picture, resized_size({picture.height, picture.width}), resample));
    if (crop_) views[0] = centre_crop(views[0], crop_->at("height"), crop_->at("width"));
    return views;
}

Image SingleLayout::padded(const Image& image) const {
    const int side = std::max(image.height, image.width);
    if (product(side, side) > max_square_pixels) {
        throw ImageError("an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                         " pixels would be padded to " + std::to_string(side) + " x " + std::to_string(side) +
                         ": that does not fit in memory, crop it or make it smaller first");
    }
    Image square(side, side);
    for (std::size_t i = 0; i < square.pixels.size(); ++i) {
        square.pixels[i] = static_cast<std::uint8_t>((*square_)[i % 3]);
    }
    paste(square, image, {(side - image.height) / 2, (side - image.width) / 2});
    return square;
}

}  // namespace

std::unique_ptr<const Layout> make_single(const Json& json, const std::string& where) {
    return std::make_unique<SingleLayout>(json, where);
}

}  // namespace fopru
