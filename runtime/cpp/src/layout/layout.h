// From the size of an image to everything that the host must know before the encoder runs:
// `runtime/layouts/`.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "image/image.h"

namespace fopru {

constexpr std::int64_t newline_row = -1;       // in ImagePlan::sequence
constexpr const char* image_slot = "{image}";  // in ImagePlan::text

using Grid = std::pair<int, int>;  // (rows, columns)

// What the encoder sees as one picture; see `Unit` in docs/bundle_format.md.
struct Unit {
    std::int64_t tokens = 0;
    std::optional<Grid> grid;
    std::optional<std::array<int, 4>> valid;  // top, bottom, left, right of the tokens that are not padding

    std::optional<Grid> valid_grid() const;
    std::int64_t prunable() const;
    std::vector<std::int64_t> valid_indices() const;  // ascending
};

// An integer tensor that goes into the encoder beside the pixels.
struct PlanInput {
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> values;
};

struct ImagePlan {
    std::vector<Unit> units;
    std::string text = image_slot;
    std::vector<std::int64_t> runs;
    std::vector<std::int64_t> sequence;  // [placeholders]
    int axes = 1;
    std::vector<std::int64_t> offsets;               // [axes, placeholders]
    std::vector<std::int64_t> spans;                 // [runs]
    std::optional<std::vector<std::int64_t>> lines;  // [placeholders]
    std::map<std::string, PlanInput> inputs;         // where there are some, the image is a call of its own
    std::optional<int> overview;
    std::optional<Grid> mosaic;

    std::int64_t placeholders() const;
    std::int64_t prunable() const;
};

// `pixel_values` of one image: float32, units first; one unit is `unit_elements` numbers.
struct Pixels {
    std::vector<std::int64_t> shape;  // [units, ...]
    std::vector<float> values;
};

// Sizes of a graph's tensors where they are fixed, -1 where they vary.
struct TensorInput {
    std::string name;
    std::string dtype;
    std::vector<std::int64_t> shape;
};

struct Preprocess {
    int resample = 3;
    double rescale_factor = 1.0 / 255;
    std::array<double, 3> mean{};
    std::array<double, 3> std{};
};

// Of a layout whose images keep their own size.
class OwnSizes {
public:
    virtual std::int64_t token_side() const = 0;             // pixels
    virtual std::int64_t min_pixels() const = 0;             // smaller images are made larger
    virtual std::int64_t max_pixels() const = 0;             // larger ones smaller
    virtual std::optional<std::int64_t> window() const = 0;  // tokens along a side of an attention window
    // (height, width) of what the encoder sees of an image. ImageError: a sliver, or too large.
    virtual Grid view_pixels(int height, int width) const = 0;

protected:
    ~OwnSizes() = default;
};

// How images become encoder inputs and placeholders. Immutable, so any number of threads may use one.
class Layout {
public:
    virtual ~Layout() = default;
    virtual const char* kind() const = 0;
    virtual int prefix_tokens() const { return 0; }
    virtual int position_axes() const { return 1; }
    virtual bool masked() const { return false; }  // the pruned encoder takes token_mask
    virtual bool has_newlines() const { return false; }
    virtual bool has_grid() const { return true; }
    // N of every unit, of every image; none where they vary.
    virtual std::optional<std::int64_t> unit_tokens() const = 0;
    virtual std::optional<std::int64_t> image_tokens() const = 0;
    virtual std::optional<Grid> unit_grid() const = 0;
    virtual std::vector<std::int64_t> pixel_shape() const = 0;  // -1: varies
    virtual std::vector<TensorInput> extra_inputs() const { return {}; }
    virtual const OwnSizes* own_sizes() const { return nullptr; }  // null: all pictures of one size

    virtual ImagePlan plan(int height, int width) const = 0;                       // ImageError
    virtual std::vector<Image> views(const Image& image, int resample) const = 0;  // one per unit, ImageError
    // float32 planes [units, 3, H, W] to pixel_values; most layouts leave them as they are.
    virtual Pixels pack(Pixels planes) const { return planes; }
};

// From the object `layout` of a manifest. BundleError: an unknown kind, a key too many or missing, a wrong
// value.
std::unique_ptr<const Layout> make_layout(const Json& json);

// An image ready for the encoder.
struct PreparedImage {
    ImagePlan plan;
    Pixels pixels;
};

PreparedImage prepare(const Image& image, const Layout& layout, const Preprocess& config);  // ImageError

}  // namespace fopru
