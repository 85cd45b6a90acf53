#include <algorithm>
#include <new>
#include <vector>

#include "frame_layout.h"
#include "nv12.h"

namespace fopru {
namespace {

// uint8 [height, width, 3]
struct Picture {
  std::int64_t height;
  std::int64_t width;
  std::vector<std::uint8_t> pixels;

  Picture(std::int64_t rows, std::int64_t columns)
      : height(rows), width(columns), pixels(static_cast<std::size_t>(rows * columns * 3)) {}
  std::uint8_t& at(std::int64_t y, std::int64_t x, int channel) {
    return pixels[static_cast<std::size_t>((y * width + x) * 3 + channel)];
  }
};

std::uint8_t nv12_channel(const FopruFramePixelsArgs& args, std::int64_t y, std::int64_t x, int channel) {
  const Nv12Factors& k = kNv12Factors[args.matrix];
  const std::uint8_t* luma = static_cast<const std::uint8_t*>(args.data) + y * args.stride;
  const std::uint8_t* chroma = static_cast<const std::uint8_t*>(args.chroma) + y / 2 * args.chroma_stride + x / 2 * 2;
  const std::int32_t of_u[3] = {0, k.green_u, k.blue_u};
  const std::int32_t of_v[3] = {k.red_v, k.green_v, 0};
  const std::int32_t scaled =
      k.luma * (luma[x] - k.offset) + of_u[channel] * (chroma[0] - 128) + of_v[channel] * (chroma[1] - 128);
  return static_cast<std::uint8_t>(std::clamp((scaled + (1 << 15)) >> 16, 0, 255));
}

std::uint8_t frame_channel(const FopruFramePixelsArgs& args, std::int64_t y, std::int64_t x, int channel) {
  const std::uint8_t* row = static_cast<const std::uint8_t*>(args.data) + y * args.stride;
  switch (args.format) {
    case FOPRU_FRAME_RGB:
      return row[x * 3 + channel];
    case FOPRU_FRAME_BGR:
      return row[x * 3 + 2 - channel];
    case FOPRU_FRAME_RGBA:
      return row[x * 4 + channel];
    case FOPRU_FRAME_BGRA:
      return row[x * 4 + 2 - channel];
    case FOPRU_FRAME_GRAY:
      return row[x];
    case FOPRU_FRAME_NV12:
      break;
  }
  return nv12_channel(args, y, x, channel);
}

Picture picture_of(const FopruFramePixelsArgs& args) {
  Picture picture(args.height, args.width);
  for (std::int64_t y = 0; y < args.height; ++y) {
    for (std::int64_t x = 0; x < args.width; ++x) {
      for (int channel = 0; channel < 3; ++channel) {
        picture.at(y, x, channel) = frame_channel(args, y, x, channel);
      }
    }
  }
  return picture;
}

Picture resized(Picture& picture, bool along_rows, int to, int filter) {
  const int from = static_cast<int>(along_rows ? picture.height : picture.width);
  const ResampleWeights weights = resample_weights({from, to, 0, to}, filter);
  Picture out(along_rows ? to : picture.height, along_rows ? picture.width : to);
  for (std::int64_t y = 0; y < out.height; ++y) {
    for (std::int64_t x = 0; x < out.width; ++x) {
      const std::size_t output = static_cast<std::size_t>(along_rows ? y : x);
      for (int channel = 0; channel < 3; ++channel) {
        std::int64_t sum = 1 << (kResampleBits - 1);
        for (int i = 0; i < weights.count[output]; ++i) {
          const std::int64_t input = weights.first[output] + i;
          const std::int64_t sample = along_rows ? picture.at(input, x, channel) : picture.at(y, input, channel);
          sum += sample * weights.values[output * static_cast<std::size_t>(weights.taps) + static_cast<std::size_t>(i)];
        }
        out.at(y, x, channel) = static_cast<std::uint8_t>(std::clamp<std::int64_t>(sum >> kResampleBits, 0, 255));
      }
    }
  }
  return out;
}

void write_pixels(const FopruFramePixelsArgs& args, bool rows_first) {
  Picture frame = picture_of(args);
  Picture between = resized(frame, rows_first, rows_first ? args.resized_height : args.resized_width, args.filter);
  Picture whole = resized(between, !rows_first, rows_first ? args.resized_width : args.resized_height, args.filter);
  const float* levels = static_cast<const float*>(args.tables);
  float* out = args.pixel_values;
  for (int channel = 0; channel < 3; ++channel) {
    for (std::int64_t y = 0; y < args.crop_height; ++y) {
      for (std::int64_t x = 0; x < args.crop_width; ++x) {
        *out++ = levels[channel * 256 + whole.at(args.top + y, args.left + x, channel)];
      }
    }
  }
}

}  // namespace
}  // namespace fopru

extern "C" FopruFrameStatus fopru_frame_pixels_reference(const FopruFramePixelsArgs* args, void* /*stream*/) {
  fopru::FrameLayout layout;
  const FopruFrameStatus status = fopru::check_frame_pixels(args, layout);
  if (status != FOPRU_FRAME_OK) {
    return status;
  }
  try {
    fopru::write_pixels(*args, layout.rows_first);
  } catch (const std::bad_alloc&) {
    return FOPRU_FRAME_OUT_OF_MEMORY;
  }
  return FOPRU_FRAME_OK;
}
