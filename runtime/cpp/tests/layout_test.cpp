#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "layout/geometry.h"
#include "layout/layout.h"

using namespace fopru;

namespace {

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

std::unique_ptr<const Layout> layout_of(const char* text) {
    return make_layout(parse_json(text, "a layout"));
}

// Every pixel says where it is.
Image numbered(int height, int width) {
    Image image(height, width);
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
            image.row(y)[3 * x] = static_cast<std::uint8_t>(y);
            image.row(y)[3 * x + 1] = static_cast<std::uint8_t>(x);
        }
    }
    return image;
}

}  // namespace

TEST_CASE("quotients of integers are rounded once, also beyond what a double holds") {
    CHECK(quotient(1, 3) == 1.0 / 3.0);
    CHECK(quotient(0, 7) == 0.0);
    CHECK(quotient(most, 1) == 9223372036854775808.0);
    CHECK(quotient(most, most) == 1.0);
    CHECK(quotient(most, most - 1) == 1.0);
    // 2**53 + 1 is no double: rounding it before the division would give 1501199875790165.25.
    CHECK(quotient((std::int64_t{1} << 53) + 1, 6) == 1501199875790165.5);
    CHECK(quotient(1, most) == std::ldexp(1.0, -63));
}

TEST_CASE("integers of doubles stay in range, and round as Python does") {
    CHECK(truncated(-2.9) == -2);
    CHECK(truncated(1e300) == most);
    CHECK(truncated(-1e300) == std::numeric_limits<std::int64_t>::min());
    CHECK(truncated(std::numeric_limits<double>::quiet_NaN()) == most);
    CHECK(ceiling(2.000001) == 3);
    CHECK(floored(-0.5) == -1);
    CHECK(half_even(0.5) == 0);
    CHECK(half_even(1.5) == 2);
    CHECK(half_even(2.5) == 2);
    CHECK(half_even(-1.5) == -2);
    CHECK(half_even(2.500001) == 3);
    CHECK(floor_half(-3) == -2);
    CHECK(floor_half(7) == 3);
    CHECK(seven_decimals(0.99999996) == 1.0);
    CHECK(seven_decimals(23.99999994) == 23.9999999);
    CHECK(seven_decimals(2.5e-8) == 0.0);
}

TEST_CASE("products and comparisons do not overflow") {
    CHECK(product(most, 2) == most);
    CHECK(product(3037000499, 3037000499) == 9223372030926249001);
    CHECK(greater(most, 9223372036854774784.0));
    CHECK_FALSE(greater(most, 9223372036854775808.0));
    CHECK_FALSE(greater((std::int64_t{1} << 53) + 1, 9007199254740994.0));
    CHECK(greater((std::int64_t{1} << 53) + 1, 9007199254740992.0));
}

TEST_CASE("a crop larger than the image is black around it") {
    const Image image = numbered(3, 4);
    const Image small = centre_crop(image, 1, 2);
    CHECK(small.height == 1);
    CHECK(small.width == 2);
    CHECK(small.row(0)[0] == 1);
    CHECK(small.row(0)[1] == 1);
    const Image large = centre_crop(image, 6, 6);
    CHECK(large.height == 6);
    CHECK(large.width == 6);
    CHECK(large.row(2)[3 * 2 + 1] == 1);  // rounded up: two rows and one column come before
    CHECK(large.row(4)[3 * 1] == 2);
    CHECK(large.row(0)[3 * 3 + 1] == 0);
}

TEST_CASE("pasting and cutting stay inside") {
    Image canvas(4, 4);
    paste(canvas, numbered(2, 2), {2, 2});
    CHECK(canvas.row(3)[3 * 3] == 1);
    CHECK(cut(canvas, {3, 3}, {5, 5}).pixels.size() == 3);
    CHECK(cut(canvas, {9, 9}, {5, 5}).pixels.empty());
    std::vector<Image> tiles;
    cut_tiles(canvas, {2, 2}, tiles);
    CHECK(tiles.size() == 4);
    CHECK(tiles[3].row(1)[3 * 1] == 1);
}

TEST_CASE("native patches lie token by token, every frame the same") {
    const auto layout = layout_of(
        R"({"kind": "native", "patch_size": 1, "merge_size": 2, "temporal_patch_size": 2,
            "min_pixels": 1, "max_pixels": 100, "window": 2})");
    Preprocess config;
    config.rescale_factor = 1.0;
    config.std = {1.0, 1.0, 1.0};
    const auto prepared = prepare(numbered(4, 2), *layout, config);
    CHECK(prepared.pixels.shape == std::vector<std::int64_t>{1, 2, 4, 6});
    // The second token's last patch is the pixel (3, 1): rows, then columns, then blue, each for two frames.
    const std::vector<float> last(prepared.pixels.values.end() - 6, prepared.pixels.values.end());
    CHECK(last == std::vector<float>{3, 3, 1, 1, 0, 0});
    CHECK(prepared.plan.inputs.at("token_positions").values == std::vector<std::int64_t>{0, 0, 1, 0});
    CHECK(prepared.plan.inputs.at("window_tokens").values == std::vector<std::int64_t>{0, -1, 1, -1});
    CHECK(prepared.plan.inputs.at("token_slots").values == std::vector<std::int64_t>{0, 2});
    CHECK(prepared.plan.axes == 3);
}

TEST_CASE("images without pixels and of absurd sizes are refused by every layout") {
    const char* const layouts[] = {
        R"({"kind": "single", "grid": null, "tokens": 4, "resize": {"shortest_edge": 8},
            "crop": {"height": 8, "width": 8}, "pad_to_square": null})",
        R"({"kind": "anyres", "tile": [8, 8], "grid": [2, 2], "pinpoints": [[8, 16], [16, 8]]})",
        R"({"kind": "split", "tile": 8, "grid": [2, 2], "resize": {"longest_edge": 16}, "splitting": true,
            "tile_text": "{image}", "row_end": "", "overview_text": "{image}", "single_text": "{image}"})",
        R"({"kind": "native", "patch_size": 2, "merge_size": 2, "temporal_patch_size": 1,
            "min_pixels": 1, "max_pixels": 2147483647, "window": null})",
        R"({"kind": "aspect", "tile": 8, "grid": [2, 2], "tiles": [1, 4], "text": "{image}"})",
    };
    constexpr int largest = std::numeric_limits<int>::max();
    for (const char* text : layouts) {
        const auto layout = layout_of(text);
        CAPTURE(layout->kind());
        CHECK_THROWS_AS(layout->plan(0, 5), ImageError);
        CHECK_THROWS_AS(layout->plan(5, -1), ImageError);
        CHECK_THROWS_AS(layout->plan(largest, 1), ImageError);
        CHECK_THROWS_AS(layout->views(Image(), 3), ImageError);
        CHECK_THROWS_AS(prepare(Image(), *layout, Preprocess()), ImageError);
    }
}

TEST_CASE("a layout is an object with a kind") {
    CHECK_THROWS_WITH_AS(layout_of("[1]"),
                         "bundle.json.layout is [1], expected an object: rebuild the bundle with "
                         "`python -m export.build`",
                         BundleError);
    CHECK_THROWS_WITH_AS(
        layout_of("{}"),
        "bundle.json.layout.kind is None, expected one of single, anyres, split, "
        "native, aspect: upgrade the runtime, or build the bundle with an exporter of this version",
        BundleError);
}
