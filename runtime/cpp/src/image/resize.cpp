// Two passes, rounded to bytes between, as Pillow does it.
#include <algorithm>
#include <array>
#include <cstring>

#include "../kernels/resample_weights.h"
#include "base/error.h"
#include "image/image.h"
#include "image/resize_sums.h"

namespace fopru {
namespace {

// The weights of one axis as the sums take them, pairs of each output one after the other.
struct Pairs {
    std::size_t most = 0;             // pairs of an output
    std::vector<std::int32_t> first;  // [outputs]: sample; of columns pair
    std::vector<std::int32_t> count;  // [outputs]: samples; of columns pairs
    std::vector<WeightPair> values;   // [outputs, most]

    const WeightPair* of(std::size_t output) const { return values.data() + output * most; }
};

enum class Axis { rows, columns };

// Of an image that is resized: an axis takes about 50 bytes for each of its samples. Pillow has no such limit
// but memory.
constexpr int max_side = 1 << 22;

// Columns are turned in pairs that begin at even places, so theirs may begin with a weight of 0.
Pairs pairs_of(int from, int to, int resample, Axis axis) {
    const ResampleWeights weights = resample_weights({from, to, 0, to}, resample);
    const auto taps = static_cast<std::size_t>(weights.taps);
    Pairs pairs{taps / 2 + 1, weights.first, weights.count, {}};
    pairs.values.resize(weights.first.size() * pairs.most);
    for (std::size_t x = 0; x < weights.first.size(); ++x) {
        const int skipped = axis == Axis::columns ? weights.first[x] % 2 : 0;
        for (int i = 0; i < weights.count[x]; ++i) {
            const std::int32_t weight = weights.values[x * taps + static_cast<std::size_t>(i)];
            const auto place = static_cast<std::size_t>(i + skipped);
            WeightPair& pair = pairs.values[x * pairs.most + place / 2];
            pair.low[place % 2] = static_cast<std::int16_t>(weight & 0x7FFF);
            pair.high[place % 2] = static_cast<std::int16_t>((weight - (weight & 0x7FFF)) / (1 << 15));
        }
        if (axis == Axis::columns) {
            pairs.first[x] /= 2;
            pairs.count[x] = (pairs.count[x] + skipped + 1) / 2;
        }
    }
    return pairs;
}

// Rows [begin, begin + rows) of `image`, resized to as many columns as `pairs` has outputs. A last block that
// has fewer than eight rows repeats the last one.
Image resize_columns(const Image& image, int begin, int rows, const Pairs& pairs) {
    Image out(rows, static_cast<int>(pairs.first.size()));
    const auto columns = static_cast<std::size_t>(image.width);
    std::vector<std::int16_t> turned((columns + 1) / 2 * 2 * block_lanes + lane_slack);
    std::array<std::uint8_t, block_lanes> sums{};
    for (int y = 0; y < rows; y += static_cast<int>(block_rows)) {
        const int here = std::min(static_cast<int>(block_rows), rows - y);
        std::array<const std::uint8_t*, block_rows> from{};
        for (int r = 0; r < static_cast<int>(block_rows); ++r) {
            from[static_cast<std::size_t>(r)] = image.row(begin + y + std::min(r, here - 1));
        }
        turn_rows(from.data(), columns, turned.data());
        for (std::size_t x = 0; x < pairs.first.size(); ++x) {
            const auto first = static_cast<std::size_t>(pairs.first[x]);
            sum_columns(turned.data() + first * 2 * block_lanes, pairs.of(x), pairs.count[x], sums.data());
            for (int r = 0; r < here; ++r) {
                std::memcpy(out.row(y + r) + x * 3, sums.data() + static_cast<std::size_t>(r) * 3, 3);
            }
        }
    }
    return out;
}

// `image` holds the rows from `begin` on of what is resized.
Image resize_rows(const Image& image, int begin, const Pairs& pairs) {
    Image out(static_cast<int>(pairs.first.size()), image.width);
    const std::size_t stride = static_cast<std::size_t>(image.width) * 3;
    for (std::size_t y = 0; y < pairs.first.size(); ++y) {
        const RowSource source = {image.row(pairs.first[y] - begin), stride, pairs.count[y]};
        sum_rows(source, pairs.of(y), stride, out.row(static_cast<int>(y)));
    }
    return out;
}

// The input sample of each output of a nearest resize. The step is added up as Pillow does, rounding errors
// included; -1 where they lead outside, which Pillow paints black.
std::vector<int> nearest_samples(int from, int to) {
    const double step = static_cast<double>(from) / to;
    double at = step * 0.5;
    std::vector<int> samples(static_cast<std::size_t>(to));
    for (int& sample : samples) {
        sample = static_cast<int>(at) < from ? static_cast<int>(at) : -1;
        at += step;
    }
    return samples;
}

Image resize_nearest(const Image& image, int height, int width) {
    Image out(height, width);
    const std::vector<int> columns = nearest_samples(image.width, width);
    const std::vector<int> rows = nearest_samples(image.height, height);
    for (int y = 0; y < height; ++y) {
        const int row = rows[static_cast<std::size_t>(y)];
        for (int x = 0; x < width; ++x) {
            const int column = columns[static_cast<std::size_t>(x)];
            if (row >= 0 && column >= 0) {
                std::memcpy(out.row(y) + static_cast<std::size_t>(x) * 3,
                            image.row(row) + static_cast<std::size_t>(column) * 3, 3);
            }
        }
    }
    return out;
}

std::string size_text(int height, int width) {
    return std::to_string(height) + " x " + std::to_string(width);
}

void check_request(const Image& image, int height, int width, int resample) {
    if (image.height < 1 || image.width < 1) {
        throw ImageError("an image is " + size_text(image.height, image.width) +
                         " pixels: it needs at least one");
    }
    if (std::max(image.height, image.width) > max_side) {
        throw ImageError("an image of " + size_text(image.height, image.width) +
                         " pixels cannot be resized: a side has at most " + std::to_string(max_side) +
                         ", crop it first");
    }
    const bool fits = height >= 1 && width >= 1 &&
                      static_cast<std::size_t>(height) <= max_pixels / static_cast<std::size_t>(width);
    if (!fits) {
        throw ImageError("an image cannot be resized to " + size_text(height, width) +
                         " pixels: sides are at least 1 and their product is at most " +
                         std::to_string(max_pixels));
    }
    if (resample < 0 || resample > 5) {
        throw ImageError("there is no resampling filter " + std::to_string(resample) +
                         ": 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming");
    }
}

}  // namespace

Image resize(const Image& image, int height, int width, int resample) {
    check_request(image, height, width, resample);
    if (image.height == height && image.width == width) {
        return image.clone();
    }
    if (resample == 0) {
        return resize_nearest(image, height, width);
    }
    const Pairs rows = pairs_of(image.height, height, resample, Axis::rows);
    const Pairs columns = pairs_of(image.width, width, resample, Axis::columns);
    if (image.width == width) {
        return resize_rows(image, 0, rows);
    }
    if (image.height == height) {
        return resize_columns(image, 0, height, columns);
    }
    if (rows_first({image.height, image.width}, {height, width})) {
        return resize_columns(resize_rows(image, 0, rows), 0, height, columns);
    }
    const int begin = rows.first.front();  // only rows that the second pass reads
    const int end = rows.first.back() + rows.count.back();
    return resize_rows(resize_columns(image, begin, end - begin, columns), begin, rows);
}

}  // namespace fopru
