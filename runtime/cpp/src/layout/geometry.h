// Arithmetic and steps that several layouts share. Numbers come out as in Python: exact quotients rounded
// once, `int` of them, halves to even.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "image/image.h"
#include "layout/fields.h"
#include "layout/layout.h"

namespace fopru {

constexpr std::int64_t max_resized_pixels = std::int64_t{1} << 26;
// Of an image, before pruning. Python has no such limit but its memory.
constexpr std::int64_t max_image_tokens = std::int64_t{1} << 22;

double quotient(std::int64_t a, std::int64_t b);  // a / b of Python's integers; b is not 0
std::int64_t truncated(double value);             // int(value); beyond 64 bits: the nearest that there is
std::int64_t ceiling(double value);               // math.ceil, likewise
std::int64_t floored(double value);               // math.floor, likewise
std::int64_t half_even(double value);             // round(value), likewise
double seven_decimals(double value);              // round(value, 7)
std::int64_t floor_half(std::int64_t value);      // value // 2
std::int64_t product(std::int64_t a, std::int64_t b);  // of numbers from 0, at most 2**63 - 1
bool greater(std::int64_t a, double b);                // a > b without rounding a

// ImageError: an image without pixels.
void check_size(const Pair& size);
// ImageError: an image of this size would not fit in memory once it is resized.
void check_resized(const Pair& size, const Pair& resized);
// ImageError: more units, or tokens in all, than an image may have.
void check_tokens(const Pair& size, std::int64_t units, std::int64_t unit_tokens);

Image resized(const Image& image, const Pair& size, int resample);
// The part of `image` that begins at (top, left) and lies inside it.
Image cut(const Image& image, const Pair& corner, const Pair& size);
// `image` put onto `canvas` at a place where it fits.
void paste(Image& canvas, const Image& image, const Pair& corner);
// All tiles, row-major, appended to `views`.
void cut_tiles(const Image& picture, const Pair& tile, std::vector<Image>& views);
Image centre_crop(const Image& image, std::int64_t height, std::int64_t width);

std::vector<std::int64_t> counted(std::int64_t count);                             // 0, 1, 2, …
std::vector<std::int64_t> running_offsets(const std::vector<std::int64_t>& runs);  // 0, 1, 2, … in every run
Grid grid_of(const Pair& pair);                                                    // of numbers of 32 bits

}  // namespace fopru
