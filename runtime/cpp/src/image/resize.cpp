// Two passes, rounded to bytes between, as Pillow does it.
#include <algorithm>
#include <array>
#include <cstring>

#include "../kernels/resample_weights.h"
#include "base/error.h"
#include "image/image.h"

namespace fopru {
namespace {

// A weight as upper and lower half, because the product of a byte and 16 bits needs no 32-bit multiplication, which
// the plainest x86 does not have for vectors. Sums are modulo 2^32, so nothing is lost.
struct Halves {
    std::uint16_t low;
    std::uint16_t high;
};

struct Weights {
    explicit Weights(const ResampleWeights& made) : taps(static_cast<std::size_t>(made.taps)), first(made.first),
                                                    count(made.count), values(made.values.size()) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            const auto bits = static_cast<std::uint32_t>(made.values[i]);
            values[i] = {static_cast<std::uint16_t>(bits), static_cast<std::uint16_t>(bits >> 16)};
        }
    }
    const Halves* of(std::size_t output) const { return values.data() + output * taps; }

    std::size_t taps;
    std::vector<std::int32_t> first;
    std::vector<std::int32_t> count;
    std::vector<Halves> values;
};

Weights weights_of(int from, int to, int resample) {
    return Weights(resample_weights({from, to, 0, to}, resample));
}

// `lanes` sums at once: out[i] = sum over k of in[k * step + i] * weight[k].
template <std::size_t lanes>
void sum(const std::uint8_t* in, std::size_t step, const Halves* weight, int count, std::uint8_t* out) {
    std::uint32_t low[lanes];
    std::uint16_t high[lanes] = {};
    std::fill_n(low, lanes, 1U << (kResampleBits - 1));
    for (int k = 0; k < count; ++k, in += step) {
        const std::uint16_t weight_low = weight[k].low;
        const std::uint16_t weight_high = weight[k].high;
        for (std::size_t i = 0; i < lanes; ++i) {
            const std::uint16_t sample = in[i];
            low[i] += static_cast<std::uint32_t>(sample) * weight_low;
            high[i] = static_cast<std::uint16_t>(high[i] + static_cast<std::uint32_t>(sample) * weight_high);
        }
    }
    for (std::size_t i = 0; i < lanes; ++i) {
        const auto total = static_cast<std::int32_t>(low[i] + (static_cast<std::uint32_t>(high[i]) << 16));
        out[i] = static_cast<std::uint8_t>(std::clamp(total >> kResampleBits, 0, 255));
    }
}

constexpr std::size_t block_rows = 8;
constexpr std::size_t block_lanes = block_rows * 3;

// Rows [begin, begin + rows) of `image`, resized to `width` columns. Eight rows go together, turned so that their
// samples of one column are neighbours. A last block that has fewer rows repeats the last one.
Image resize_columns(const Image& image, int begin, int rows, const Weights& weights) {
    Image out(rows, static_cast<int>(weights.first.size()));
    const auto columns = static_cast<std::size_t>(image.width);
    std::vector<std::uint8_t> turned(columns * block_lanes);
    std::array<std::uint8_t, block_lanes> sums{};
    for (int y = 0; y < rows; y += static_cast<int>(block_rows)) {
        const int here = std::min(static_cast<int>(block_rows), rows - y);
        std::array<const std::uint8_t*, block_rows> from{};
        for (int r = 0; r < static_cast<int>(block_rows); ++r) {
            from[static_cast<std::size_t>(r)] = image.row(begin + y + std::min(r, here - 1));
        }
        for (std::size_t x = 0; x < columns; ++x) {
            for (std::size_t r = 0; r < block_rows; ++r) {
                std::memcpy(turned.data() + x * block_lanes + r * 3, from[r] + x * 3, 3);
            }
        }
        for (std::size_t x = 0; x < weights.first.size(); ++x) {
            const auto first = static_cast<std::size_t>(weights.first[x]);
            sum<block_lanes>(turned.data() + first * block_lanes, block_lanes, weights.of(x), weights.count[x], sums.data());
            for (int r = 0; r < here; ++r) {
                std::memcpy(out.row(y + r) + x * 3, sums.data() + static_cast<std::size_t>(r) * 3, 3);
            }
        }
    }
    return out;
}

// `image` holds the rows from `begin` on of what is resized.
Image resize_rows(const Image& image, int begin, const Weights& weights) {
    Image out(static_cast<int>(weights.first.size()), image.width);
    const std::size_t stride = static_cast<std::size_t>(image.width) * 3;
    for (std::size_t y = 0; y < weights.first.size(); ++y) {
        const std::uint8_t* from = image.row(weights.first[y] - begin);
        std::uint8_t* to = out.row(static_cast<int>(y));
        std::size_t i = 0;
        for (; i + block_lanes <= stride; i += block_lanes) {
            sum<block_lanes>(from + i, stride, weights.of(y), weights.count[y], to + i);
        }
        for (; i < stride; ++i) {
            sum<1>(from + i, stride, weights.of(y), weights.count[y], to + i);
        }
    }
    return out;
}

// The input sample of each output of a nearest resize. The step is added up as Pillow does, rounding errors included;
// -1 where they lead outside, which Pillow paints black.
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

std::string size_text(int height, int width) { return std::to_string(height) + " x " + std::to_string(width); }

void check_request(const Image& image, int height, int width, int resample) {
    if (image.height < 1 || image.width < 1) {
        throw ImageError("an image is " + size_text(image.height, image.width) + " pixels: it needs at least one");
    }
    const bool fits = height >= 1 && width >= 1 &&
                      static_cast<std::size_t>(height) <= max_pixels / static_cast<std::size_t>(width);
    if (!fits) {
        throw ImageError("an image cannot be resized to " + size_text(height, width) +
                         " pixels: sides are at least 1 and their product is at most " + std::to_string(max_pixels));
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
    const Weights rows = weights_of(image.height, height, resample);
    const Weights columns = weights_of(image.width, width, resample);
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
