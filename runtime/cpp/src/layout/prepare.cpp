#include "layout/layout.h"

#include <algorithm>

#include "base/error.h"

namespace fopru {

namespace {

// The value of every grey level of a channel, since only 256 of them exist: scaled in double precision, then
// normalised in single precision, as the image processors do.
std::array<float, 256> normalised_levels(const Preprocess& config, std::size_t channel) {
    const auto mean = static_cast<float>(config.mean[channel]), std = static_cast<float>(config.std[channel]);
    std::array<float, 256> levels{};
    for (std::size_t level = 0; level < levels.size(); ++level) {
        const auto scaled = static_cast<float>(static_cast<double>(level) * config.rescale_factor);
        levels[level] = (scaled - mean) / std;
    }
    return levels;
}

// Channels apart, at `out`, which has room for them.
void write_planes(const Image& view, const std::array<std::array<float, 256>, 3>& levels, float* out) {
    const std::size_t pixels = view.pixels.size() / 3;
    for (std::size_t channel = 0; channel < 3; ++channel) {
        const auto& table = levels[channel];
        const std::uint8_t* from = view.pixels.data() + channel;
        for (std::size_t i = 0; i < pixels; ++i) *out++ = table[from[3 * i]];
    }
}

}  // namespace

PreparedImage prepare(const Image& image, const Layout& layout, const Preprocess& config) {
    ImagePlan plan = layout.plan(image.height, image.width);
    const auto views = layout.views(image, config.resample);
    std::array<std::array<float, 256>, 3> levels;
    for (std::size_t channel = 0; channel < 3; ++channel)
        levels[channel] = normalised_levels(config, channel);
    const Image& first = views.at(0);
    const bool equal = std::all_of(views.begin(), views.end(), [&](const Image& view) {
        return view.height == first.height && view.width == first.width;
    });
    if (!equal || views.size() != plan.units.size()) {
        throw ImageError("an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                         " pixels gives views of several sizes: " + rebuild_bundle);
    }
    Pixels planes;
    planes.shape = {static_cast<std::int64_t>(views.size()), 3, first.height, first.width};
    planes.values.resize(views.size() * first.pixels.size());
    float* out = planes.values.data();
    for (const auto& view : views) {
        write_planes(view, levels, out);
        out += view.pixels.size();
    }
    return {std::move(plan), layout.pack(std::move(planes))};
}

}  // namespace fopru
