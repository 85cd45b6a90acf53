// Qwen2-VL and Qwen2.5-VL: every image in its own size, rounded to whole tokens, positions in three axes.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "layout/fields.h"
#include "layout/geometry.h"
#include "layout/layouts.h"

namespace fopru {

namespace {

constexpr const char* token_positions = "token_positions";
constexpr const char* window_tokens = "window_tokens";
constexpr const char* token_slots = "token_slots";
constexpr std::int64_t max_values = 6 * max_resized_pixels;  // of an image: three channels of two frames
constexpr std::int64_t most_stretched = 200;                 // the model's own limit on the aspect ratio

class NativeLayout final : public Layout, public OwnSizes {
public:
    NativeLayout(const Json& json, const std::string& where);

    const char* kind() const override { return "native"; }
    int position_axes() const override { return 3; }
    std::optional<std::int64_t> unit_tokens() const override { return std::nullopt; }
    std::optional<std::int64_t> image_tokens() const override { return std::nullopt; }
    std::optional<Grid> unit_grid() const override { return std::nullopt; }
    std::vector<std::int64_t> pixel_shape() const override {
        return {1, -1, product(merge_, merge_), product(product(3, frames_), product(patch_, patch_))};
    }
    std::vector<TensorInput> extra_inputs() const override;
    ImagePlan plan(int height, int width) const override;
    std::vector<Image> views(const Image& image, int resample) const override;
    Pixels pack(Pixels planes) const override;

    const OwnSizes* own_sizes() const override { return this; }
    std::int64_t token_side() const override { return patch_ * merge_; }
    std::int64_t min_pixels() const override { return min_pixels_; }
    std::int64_t max_pixels() const override { return max_pixels_; }
    std::optional<std::int64_t> window() const override { return window_; }
    Grid view_pixels(int height, int width) const override { return grid_of(view_size({height, width})); }

private:
    Pair view_size(const Pair& size) const;  // multiples of a token's side; ImageError
    void add_windows(ImagePlan& plan, const Pair& size, const Pair& grid) const;

    std::int64_t patch_ = 0, merge_ = 0, frames_ = 0, min_pixels_ = 0, max_pixels_ = 0;
    std::optional<std::int64_t> window_;
};

NativeLayout::NativeLayout(const Json& json, const std::string& where) {
    read_layout(json, where,
                {whole_field("patch_size", patch_), whole_field("merge_size", merge_),
                 whole_field("temporal_patch_size", frames_), whole_field("min_pixels", min_pixels_),
                 whole_field("max_pixels", max_pixels_), whole_field("window", window_)});
    const std::string end = std::string(": ") + rebuild_bundle;
    const std::pair<const char*, std::int64_t> positive[] = {{"patch_size", patch_},
                                                             {"merge_size", merge_},
                                                             {"temporal_patch_size", frames_},
                                                             {"min_pixels", min_pixels_},
                                                             {"window", window_.value_or(1)}};
    for (const auto& [name, value] : positive) {
        if (value < 1) {
            throw BundleError("layout." + std::string(name) + " is " + std::to_string(value) +
                              ", expected a number from 1 on" + end);
        }
    }
    if (max_pixels_ < min_pixels_) {
        throw BundleError("layout.max_pixels is " + std::to_string(max_pixels_) +
                          ", expected at least layout.min_pixels " + std::to_string(min_pixels_) + end);
    }
}

std::vector<TensorInput> NativeLayout::extra_inputs() const {
    std::vector<TensorInput> inputs = {{token_positions, "int64", {-1, 2}}};
    if (window_) {
        inputs.push_back({window_tokens, "int64", {-1, product(*window_, *window_)}});
        inputs.push_back({token_slots, "int64", {-1}});
    }
    return inputs;
}

Pair NativeLayout::view_size(const Pair& size) const {
    const auto [height, width] = size;
    if (std::min(height, width) < 1 ||
        quotient(std::max(height, width), std::min(height, width)) > static_cast<double>(most_stretched)) {
        throw ImageError("an image has " + std::to_string(width) + " x " + std::to_string(height) +
                         " pixels, but one side may be at most " + std::to_string(most_stretched) +
                         " times the other: crop it first");
    }
    const std::int64_t token = patch_ * merge_;
    const auto side = static_cast<double>(token), tall = static_cast<double>(height),
               wide = static_cast<double>(width);
    Pair resized = {half_even(quotient(height, token)) * token, half_even(quotient(width, token)) * token};
    const std::int64_t pixels = product(resized[0], resized[1]);
    if (pixels > max_pixels_) {
        const double shrink = std::sqrt(quotient(product(height, width), max_pixels_));
        resized = {std::max(token, floored(tall / shrink / side) * token),
                   std::max(token, floored(wide / shrink / side) * token)};
    } else if (pixels < min_pixels_) {
        const double grow = std::sqrt(quotient(min_pixels_, product(height, width)));
        resized = {ceiling(tall * grow / side) * token, ceiling(wide * grow / side) * token};
    }
    check_resized(size, resized);
    return resized;
}

ImagePlan NativeLayout::plan(int height, int width) const {
    const Pair size = {height, width}, view = view_size(size);
    const std::int64_t side = patch_ * merge_, rows = view[0] / side, columns = view[1] / side,
                       tokens = rows * columns;
    check_tokens(size, 1, tokens);
    ImagePlan plan;
    plan.units.push_back({tokens, grid_of({rows, columns}), std::nullopt});
    plan.runs = {tokens};
    plan.spans = {std::max(rows, columns)};  // text goes on after the longer side
    plan.sequence = counted(tokens);
    plan.axes = 3;
    plan.offsets.resize(static_cast<std::size_t>(3 * tokens));  // time stands still
    PlanInput positions{{tokens, 2}, std::vector<std::int64_t>(static_cast<std::size_t>(2 * tokens))};
    for (std::int64_t i = 0; i < tokens; ++i) {
        const auto at = static_cast<std::size_t>(i), count = static_cast<std::size_t>(tokens);
        plan.offsets[count + at] = positions.values[2 * at] = i / columns;
        plan.offsets[2 * count + at] = positions.values[2 * at + 1] = i % columns;
    }
    plan.inputs.emplace(token_positions, std::move(positions));
    if (window_) add_windows(plan, size, {rows, columns});
    return plan;
}

// Windows of `window` x `window` tokens, row-major; slots beyond the right and bottom edge are empty.
void NativeLayout::add_windows(ImagePlan& plan, const Pair& size, const Pair& grid) const {
    const std::int64_t side = *window_;
    const std::int64_t down = (grid[0] + side - 1) / side, across = (grid[1] + side - 1) / side;
    check_tokens(size, down * across, product(side, side));
    const std::int64_t slots = down * across * side * side;
    PlanInput tokens{{down * across, side * side},
                     std::vector<std::int64_t>(static_cast<std::size_t>(slots), -1)};
    PlanInput places{{grid[0] * grid[1]},
                     std::vector<std::int64_t>(static_cast<std::size_t>(grid[0] * grid[1]))};
    for (std::int64_t y = 0; y < grid[0]; ++y) {
        for (std::int64_t x = 0; x < grid[1]; ++x) {
            const std::int64_t window = y / side * across + x / side, token = y * grid[1] + x;
            const std::int64_t slot = (window * side + y % side) * side + x % side;
            tokens.values[static_cast<std::size_t>(slot)] = token;
            places.values[static_cast<std::size_t>(token)] = slot;
        }
    }
    plan.inputs.emplace(window_tokens, std::move(tokens));
    plan.inputs.emplace(token_slots, std::move(places));
}

std::vector<Image> NativeLayout::views(const Image& image, int resample) const {
    std::vector<Image> views;
    views.push_back(resized(image, view_size({image.height, image.width}), resample));
    return views;
}

// [1, 3, H, W] to [1, tokens, patches of a token, channel · frame · y · x].
Pixels NativeLayout::pack(Pixels planes) const {
    const std::int64_t height = planes.shape[2], width = planes.shape[3], side = patch_ * merge_;
    const std::int64_t columns = width / side, tokens = height / side * columns;
    Pixels packed;
    packed.shape = {1, tokens, merge_ * merge_, 3 * frames_ * patch_ * patch_};
    if (product(product(3, frames_), product(height, width)) > max_values) {
        throw ImageError("an image of " + std::to_string(width) + " x " + std::to_string(height) +
                         " pixels in " + std::to_string(frames_) +
                         " equal frames does not fit in memory: make it smaller first");
    }
    packed.values.reserve(static_cast<std::size_t>(3 * frames_ * height * width));
    for (std::int64_t token = 0; token < tokens; ++token) {
        for (std::int64_t part = 0; part < merge_ * merge_; ++part) {
            const std::int64_t top = token / columns * side + part / merge_ * patch_;
            const std::int64_t left = token % columns * side + part % merge_ * patch_;
            for (std::int64_t channel = 0; channel < 3; ++channel) {
                const float* plane = planes.values.data() + channel * height * width;
                for (std::int64_t frame = 0; frame < frames_; ++frame) {
                    for (std::int64_t y = top; y < top + patch_; ++y) {
                        const float* row = plane + y * width + left;
                        packed.values.insert(packed.values.end(), row, row + patch_);
                    }
                }
            }
        }
    }
    return packed;
}

}  // namespace

std::unique_ptr<const Layout> make_native(const Json& json, const std::string& where) {
    return std::make_unique<NativeLayout>(json, where);
}

}  // namespace fopru
