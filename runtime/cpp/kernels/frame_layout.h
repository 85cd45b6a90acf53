// Internal: what the kernels and the reference agree on before they touch any data.
#pragma once

#include "frame_pixels.h"
#include "resample_weights.h"

namespace fopru {

constexpr std::int64_t kLevels = 3 * 256;  // float, the first of the tables

// Where one axis of the tables lies, counted in 4 bytes: first and count [outputs], values [outputs, taps].
struct FrameAxis {
  ResampleAxis axis;
  ResampleSpan inputs;  // that any output of the crop reads
  std::int64_t taps;
  std::int64_t first;
  std::int64_t count;
  std::int64_t values;
  std::int64_t end;
};

struct FrameLayout {
  bool rows_first;
  FrameAxis rows;
  FrameAxis columns;
  std::int32_t between_height;  // of the samples between the passes: [3, between_height, between_width] bytes
  std::int32_t between_width;
  std::int64_t tables_bytes;
};

// FOPRU_FRAME_OK and `layout` set, or which of sizes, crop and filter is not allowed.
FopruFrameStatus frame_layout(const FopruFramePixelsArgs& args, FrameLayout& layout);

// That and everything else that frame_pixels.h asks for, in the order of the status codes.
FopruFrameStatus check_frame_pixels(const FopruFramePixelsArgs* args, FrameLayout& layout);

}  // namespace fopru
