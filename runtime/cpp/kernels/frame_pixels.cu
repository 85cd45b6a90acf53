// The kernels behind fopru_frame_pixels: one resample along an axis, run twice. A thread owns a sample with its three channels.
#include <cuda_runtime.h>

#include "frame_layout.h"
#include "nv12.h"

namespace fopru {
namespace {

constexpr int kThreads = 256;

struct Rgb {
  std::int32_t red;
  std::int32_t green;
  std::int32_t blue;
};

__device__ inline std::int32_t to_byte(std::int32_t value, int bits) {
  const std::int32_t shifted = value >> bits;
  return shifted < 0 ? 0 : shifted > 255 ? 255 : shifted;
}

// Where the first pass reads: the caller's frame.
struct FrameSource {
  const std::uint8_t* data;
  const std::uint8_t* chroma;
  std::int64_t stride;
  std::int64_t chroma_stride;
  FopruFrameFormat format;
  Nv12Factors factors;

  __device__ Rgb at(std::int32_t y, std::int32_t x) const {
    const std::uint8_t* row = data + y * stride;
    if (format == FOPRU_FRAME_NV12) {
      const std::uint8_t* pair = chroma + y / 2 * chroma_stride + x / 2 * 2;
      const std::int32_t base = factors.luma * (row[x] - factors.offset) + (1 << 15);
      const std::int32_t u = pair[0] - 128;
      const std::int32_t v = pair[1] - 128;
      return {to_byte(base + factors.red_v * v, 16), to_byte(base + factors.green_u * u + factors.green_v * v, 16),
              to_byte(base + factors.blue_u * u, 16)};
    }
    if (format == FOPRU_FRAME_GRAY) {
      return {row[x], row[x], row[x]};
    }
    const bool alpha = format == FOPRU_FRAME_RGBA || format == FOPRU_FRAME_BGRA;
    const std::uint8_t* pixel = row + static_cast<std::int64_t>(x) * (alpha ? 4 : 3);
    const bool swapped = format == FOPRU_FRAME_BGR || format == FOPRU_FRAME_BGRA;
    return {pixel[swapped ? 2 : 0], pixel[1], pixel[swapped ? 0 : 2]};
  }
};

// Samples between the passes: [3, height, width] bytes, of which (0, 0) is the frame's or the crop's (top, left).
struct Planes {
  std::uint8_t* data;
  std::int32_t height;
  std::int32_t width;
  std::int32_t top;
  std::int32_t left;

  __device__ std::int64_t offset(std::int32_t y, std::int32_t x) const {
    return static_cast<std::int64_t>(y) * width + x;
  }
  __device__ Rgb at(std::int32_t y, std::int32_t x) const {
    const std::int64_t plane = static_cast<std::int64_t>(height) * width;
    const std::uint8_t* sample = data + offset(y - top, x - left);
    return {sample[0], sample[plane], sample[2 * plane]};
  }
  __device__ void put(std::int32_t y, std::int32_t x, const Rgb& value) const {
    const std::int64_t plane = static_cast<std::int64_t>(height) * width;
    std::uint8_t* sample = data + offset(y, x);
    sample[0] = static_cast<std::uint8_t>(value.red);
    sample[plane] = static_cast<std::uint8_t>(value.green);
    sample[2 * plane] = static_cast<std::uint8_t>(value.blue);
  }
};

// Where the second pass writes.
struct PixelValues {
  float* data;  // [3, height, width]
  const float* levels;
  std::int32_t height;
  std::int32_t width;

  __device__ void put(std::int32_t y, std::int32_t x, const Rgb& value) const {
    const std::int64_t plane = static_cast<std::int64_t>(height) * width;
    float* pixel = data + static_cast<std::int64_t>(y) * width + x;
    pixel[0] = levels[value.red];
    pixel[plane] = levels[256 + value.green];
    pixel[2 * plane] = levels[512 + value.blue];
  }
};

// The tables of one axis, on the device. `other` is what is added to the coordinate that is not resampled.
struct Axis {
  const std::int32_t* first;
  const std::int32_t* count;
  const std::int32_t* values;
  std::int32_t taps;
  std::int32_t other;
};

template <bool kAlongRows, class Source, class Sink>
__global__ void __launch_bounds__(kThreads) resample_kernel(Source source, Sink sink, Axis axis) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(sink.height) * sink.width) {
    return;
  }
  const std::int32_t y = static_cast<std::int32_t>(index / sink.width);
  const std::int32_t x = static_cast<std::int32_t>(index % sink.width);
  const std::int32_t output = kAlongRows ? y : x;
  const std::int32_t first = axis.first[output];
  const std::int32_t count = axis.count[output];
  const std::int32_t* weights = axis.values + static_cast<std::int64_t>(output) * axis.taps;
  constexpr std::int32_t kHalf = 1 << (kResampleBits - 1);
  Rgb sum = {kHalf, kHalf, kHalf};
  for (std::int32_t i = 0; i < count; ++i) {
    const Rgb sample = kAlongRows ? source.at(first + i, x + axis.other) : source.at(y + axis.other, first + i);
    sum.red += sample.red * weights[i];
    sum.green += sample.green * weights[i];
    sum.blue += sample.blue * weights[i];
  }
  sink.put(y, x, {to_byte(sum.red, kResampleBits), to_byte(sum.green, kResampleBits), to_byte(sum.blue, kResampleBits)});
}

template <class Source, class Sink>
cudaError_t launch(void (*kernel)(Source, Sink, Axis), Source source, Sink sink, Axis axis, cudaStream_t stream) {
  const std::int64_t samples = static_cast<std::int64_t>(sink.height) * sink.width;
  void* parameters[] = {&source, &sink, &axis};
  const dim3 blocks(static_cast<unsigned int>((samples + kThreads - 1) / kThreads));
  return cudaLaunchKernel(kernel, blocks, dim3(kThreads), parameters, 0, stream);
}

Axis axis_of(const FopruFramePixelsArgs& args, const FrameAxis& axis, std::int32_t other) {
  const std::int32_t* words = static_cast<const std::int32_t*>(args.tables);
  return {words + axis.first, words + axis.count, words + axis.values, static_cast<std::int32_t>(axis.taps), other};
}

cudaError_t run(const FopruFramePixelsArgs& args, const FrameLayout& layout, cudaStream_t stream) {
  const FrameSource frame = {static_cast<const std::uint8_t*>(args.data), static_cast<const std::uint8_t*>(args.chroma),
                             args.stride, args.chroma_stride, args.format, kNv12Factors[args.matrix]};
  const PixelValues values = {args.pixel_values, static_cast<const float*>(args.tables), args.crop_height, args.crop_width};
  Planes between = {static_cast<std::uint8_t*>(args.workspace), layout.between_height, layout.between_width, 0, 0};
  if (layout.rows_first) {
    between.left = layout.columns.inputs.begin;
    const cudaError_t error = launch(resample_kernel<true, FrameSource, Planes>, frame, between,
                                     axis_of(args, layout.rows, between.left), stream);
    return error != cudaSuccess ? error
                                : launch(resample_kernel<false, Planes, PixelValues>, between, values,
                                         axis_of(args, layout.columns, 0), stream);
  }
  between.top = layout.rows.inputs.begin;
  const cudaError_t error = launch(resample_kernel<false, FrameSource, Planes>, frame, between,
                                   axis_of(args, layout.columns, between.top), stream);
  return error != cudaSuccess ? error
                              : launch(resample_kernel<true, Planes, PixelValues>, between, values,
                                       axis_of(args, layout.rows, 0), stream);
}

}  // namespace
}  // namespace fopru

extern "C" FopruFrameStatus fopru_frame_pixels(const FopruFramePixelsArgs* args, void* stream) {
  fopru::FrameLayout layout;
  const FopruFrameStatus status = fopru::check_frame_pixels(args, layout);
  if (status != FOPRU_FRAME_OK) {
    return status;
  }
  const cudaError_t error = fopru::run(*args, layout, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? FOPRU_FRAME_OK : FOPRU_FRAME_LAUNCH_FAILED;
}
