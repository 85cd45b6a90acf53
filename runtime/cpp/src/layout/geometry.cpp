#include "layout/geometry.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/error.h"

namespace fopru {

namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::int64_t exact = std::int64_t{1} << 53;  // a double holds every integer up to here
constexpr double beyond = 9223372036854775808.0;       // 2**63

std::int64_t whole(double value) {
    if (!(value < beyond)) return std::numeric_limits<std::int64_t>::max();
    if (value < -beyond) return std::numeric_limits<std::int64_t>::min();
    return static_cast<std::int64_t>(value);
}

// Both from 1 on. Enough bits of the quotient that the last one only says whether there are more.
double rounded_once(std::uint64_t a, std::uint64_t b) {
    int shift = 0;
    Wide dividend = a;
    while (dividend >> 124 == 0 && dividend / b >> 62 == 0) {
        dividend <<= 1;
        ++shift;
    }
    auto bits = static_cast<std::uint64_t>(dividend / b);
    if (dividend % b != 0) bits |= 1U;
    return std::ldexp(static_cast<double>(bits), -shift);
}

std::string sized(const Pair& size) { return std::to_string(size[1]) + " x " + std::to_string(size[0]); }

}  // namespace

double quotient(std::int64_t a, std::int64_t b) {
    if (std::max(std::abs(a), std::abs(b)) <= exact || a <= 0 || b <= 0) {
        return static_cast<double>(a) / static_cast<double>(b);
    }
    return rounded_once(static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b));
}

std::int64_t truncated(double value) { return whole(std::trunc(value)); }
std::int64_t ceiling(double value) { return whole(std::ceil(value)); }
std::int64_t floored(double value) { return whole(std::floor(value)); }

std::int64_t half_even(double value) {
    const double below = std::floor(value), rest = value - below;
    const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(below, 2.0) != 0.0);
    return whole(up ? below + 1.0 : below);
}

double seven_decimals(double value) {
    char text[400];
    const auto end = std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed, 7).ptr;
    double rounded = value;
    std::from_chars(text, end, rounded);
    return rounded;
}

std::int64_t floor_half(std::int64_t value) { return (value - (value & 1)) / 2; }

std::int64_t product(std::int64_t a, std::int64_t b) {
    std::int64_t result = 0;
    return __builtin_mul_overflow(a, b, &result) ? std::numeric_limits<std::int64_t>::max() : result;
}

bool greater(std::int64_t a, double b) { return b < beyond && a > whole(std::floor(b)); }

void check_size(const Pair& size) {
    if (std::min(size[0], size[1]) < 1) {
        throw ImageError("an image has " + sized(size) + " pixels, expected at least 1 x 1: check the file");
    }
}

void check_resized(const Pair& size, const Pair& resized) {
    if (product(resized[0], resized[1]) > max_resized_pixels) {
        throw ImageError("an image of " + sized(size) + " pixels would be resized to " + sized(resized) +
                         ": that does not fit in memory, crop it or make it smaller first");
    }
}

void check_tokens(const Pair& size, std::int64_t units, std::int64_t unit_tokens) {
    if (product(units, unit_tokens) > max_image_tokens || units > max_image_tokens) {
        throw ImageError("an image of " + sized(size) + " pixels would be seen in " + std::to_string(units) +
                         " parts of " + std::to_string(unit_tokens) + " tokens, expected " +
                         std::to_string(max_image_tokens) + " tokens at most: " + rebuild_bundle);
    }
}

Image resized(const Image& image, const Pair& size, int resample) {
    return resize(image, static_cast<int>(size[0]), static_cast<int>(size[1]), resample);
}

Image cut(const Image& image, const Pair& corner, const Pair& size) {
    const auto top = std::clamp<std::int64_t>(corner[0], 0, image.height);
    const auto left = std::clamp<std::int64_t>(corner[1], 0, image.width);
    const auto bottom = std::clamp<std::int64_t>(corner[0] + size[0], top, image.height);
    const auto right = std::clamp<std::int64_t>(corner[1] + size[1], left, image.width);
    Image part(static_cast<int>(bottom - top), static_cast<int>(right - left));
    if (part.pixels.empty()) return part;
    const auto bytes = static_cast<std::size_t>(right - left) * 3;
    for (int y = 0; y < part.height; ++y) {
        std::memcpy(part.row(y), image.row(static_cast<int>(top) + y) + left * 3, bytes);
    }
    return part;
}

void paste(Image& canvas, const Image& image, const Pair& corner) {
    if (image.pixels.empty()) return;
    const auto bytes = static_cast<std::size_t>(image.width) * 3;
    for (int y = 0; y < image.height; ++y) {
        std::memcpy(canvas.row(static_cast<int>(corner[0]) + y) + corner[1] * 3, image.row(y), bytes);
    }
}

void cut_tiles(const Image& picture, const Pair& tile, std::vector<Image>& views) {
    for (std::int64_t top = 0; top < picture.height; top += tile[0]) {
        for (std::int64_t left = 0; left < picture.width; left += tile[1]) {
            views.push_back(cut(picture, {top, left}, tile));
        }
    }
}

Image centre_crop(const Image& image, std::int64_t height, std::int64_t width) {
    std::int64_t top = floor_half(image.height - height), left = floor_half(image.width - width);
    if (top >= 0 && left >= 0) return cut(image, {top, left}, {height, width});
    // Rounding as in the processors: the padding before the image is rounded up, the crop's own offset down.
    const auto full_height = std::max<std::int64_t>(height, image.height);
    const auto full_width = std::max<std::int64_t>(width, image.width);
    const auto pad_top = -floor_half(image.height - full_height),
               pad_left = -floor_half(image.width - full_width);
    Image padded(static_cast<int>(full_height), static_cast<int>(full_width));
    paste(padded, image, {pad_top, pad_left});
    top = std::max<std::int64_t>(0, top + pad_top);
    left = std::max<std::int64_t>(0, left + pad_left);
    return cut(padded, {top, left}, {height, width});
}

std::vector<std::int64_t> counted(std::int64_t count) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int64_t>(i);
    return values;
}

std::vector<std::int64_t> running_offsets(const std::vector<std::int64_t>& runs) {
    std::vector<std::int64_t> offsets;
    for (const auto run : runs) {
        for (std::int64_t i = 0; i < run; ++i) offsets.push_back(i);
    }
    return offsets;
}

Grid grid_of(const Pair& pair) { return {static_cast<int>(pair[0]), static_cast<int>(pair[1])}; }

}  // namespace fopru
