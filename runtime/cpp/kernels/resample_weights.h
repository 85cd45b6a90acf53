// Weights of an antialiased resize along one axis, in the integer arithmetic of Pillow's Resample.c: with them every byte of a
// picture is Pillow's. Shared by the resize on the host and by the kernels, which add up the same integers.
#pragma once

#include <cstdint>
#include <vector>

namespace fopru {

// A sample is round(sum / 2^22): 8 bits of result and 2 bits of overshoot stay free of an int32.
constexpr int kResampleBits = 32 - 8 - 2;

// Output `x` is the sum of `count[x]` inputs from `first[x]` on, each times values[x * taps + i]. Beyond `count` they are 0.
struct ResampleWeights {
  int taps = 0;
  std::vector<std::int32_t> first;   // [outputs]
  std::vector<std::int32_t> count;   // [outputs], at most `taps`, at least 1
  std::vector<std::int32_t> values;  // [outputs, taps]
};

// `filter` by Pillow's codes: 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming. Sides are at least 1; anything else throws
// std::invalid_argument. Weights of the outputs [begin, begin + outputs) of a resize from `from` to `to` samples.
struct ResampleAxis {
  int from = 0;
  int to = 0;
  int begin = 0;
  int outputs = 0;
};
ResampleWeights resample_weights(const ResampleAxis& axis, int filter);

// Which axis a resize of both goes along first, which decides what is rounded between: true for the rows, where that leaves
// less to do by Pillow's estimate. Since Pillow 13; before, columns came first always, up to 2 levels off in such a picture.
struct PictureSize {
  int height = 0;
  int width = 0;
};
bool rows_first(PictureSize from, PictureSize to);

// The inputs [begin, end) that any of those outputs reads. Allocates nothing.
struct ResampleSpan {
  std::int32_t begin = 0;
  std::int32_t end = 0;
};
ResampleSpan resample_span(const ResampleAxis& axis, int filter);

// The widest `taps` of that resize, without the weights.
int resample_taps(int from, int to, int filter);

}  // namespace fopru
