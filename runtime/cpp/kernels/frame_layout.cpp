#include "frame_layout.h"

#include <cstdint>
#include <cstring>
#include <new>

namespace fopru {
namespace {

constexpr std::int64_t kMostPixels = std::int64_t{1} << 26;  // three planes stay countable in 32 bits

bool size_allowed(std::int64_t height, std::int64_t width) {
  return height > 0 && width > 0 && height <= kMostPixels / width;
}

bool crop_allowed(std::int64_t begin, std::int64_t outputs, std::int64_t side) {
  return begin >= 0 && outputs > 0 && begin <= side && outputs <= side - begin;
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % sizeof(float) == 0; }

FrameAxis axis_at(std::int64_t offset, const ResampleAxis& axis, int filter) {
  FrameAxis made;
  made.axis = axis;
  made.inputs = resample_span(axis, filter);
  made.taps = resample_taps(axis.from, axis.to, filter);
  made.first = offset;
  made.count = made.first + axis.outputs;
  made.values = made.count + axis.outputs;
  made.end = made.values + axis.outputs * made.taps;
  return made;
}

std::int64_t bytes_of_pixel(FopruFrameFormat format) {
  switch (format) {
    case FOPRU_FRAME_RGB:
    case FOPRU_FRAME_BGR:
      return 3;
    case FOPRU_FRAME_RGBA:
    case FOPRU_FRAME_BGRA:
      return 4;
    case FOPRU_FRAME_GRAY:
    case FOPRU_FRAME_NV12:
      return 1;
  }
  return 0;
}

void put_axis(const FrameAxis& axis, int filter, std::int32_t* out) {
  const ResampleWeights weights = resample_weights(axis.axis, filter);
  std::memcpy(out + axis.first, weights.first.data(), weights.first.size() * sizeof(std::int32_t));
  std::memcpy(out + axis.count, weights.count.data(), weights.count.size() * sizeof(std::int32_t));
  std::memcpy(out + axis.values, weights.values.data(), weights.values.size() * sizeof(std::int32_t));
}

}  // namespace

FopruFrameStatus frame_layout(const FopruFramePixelsArgs& args, FrameLayout& layout) {
  if (!size_allowed(args.height, args.width) || !size_allowed(args.resized_height, args.resized_width)) {
    return FOPRU_FRAME_BAD_SIZE;
  }
  if (!crop_allowed(args.top, args.crop_height, args.resized_height) ||
      !crop_allowed(args.left, args.crop_width, args.resized_width)) {
    return FOPRU_FRAME_BAD_CROP;
  }
  if (args.filter < 1 || args.filter > 5) {
    return FOPRU_FRAME_BAD_FILTER;
  }
  layout.rows_first = rows_first({args.height, args.width}, {args.resized_height, args.resized_width});
  layout.rows = axis_at(kLevels, {args.height, args.resized_height, args.top, args.crop_height}, args.filter);
  layout.columns = axis_at(layout.rows.end, {args.width, args.resized_width, args.left, args.crop_width}, args.filter);
  layout.between_height = layout.rows_first ? args.crop_height : layout.rows.inputs.end - layout.rows.inputs.begin;
  layout.between_width = layout.rows_first ? layout.columns.inputs.end - layout.columns.inputs.begin : args.crop_width;
  layout.tables_bytes = layout.columns.end * static_cast<std::int64_t>(sizeof(std::int32_t));
  // a thread per sample: counted in 32 bits
  return size_allowed(layout.between_height, layout.between_width) ? FOPRU_FRAME_OK : FOPRU_FRAME_BAD_SIZE;
}

FopruFrameStatus check_frame_pixels(const FopruFramePixelsArgs* args, FrameLayout& layout) {
  if (args == nullptr) {
    return FOPRU_FRAME_NULL_POINTER;
  }
  if (args->struct_bytes != sizeof(FopruFramePixelsArgs)) {
    return FOPRU_FRAME_STRUCT_MISMATCH;  // before anything else: the other fields may lie elsewhere
  }
  const bool nv12 = args->format == FOPRU_FRAME_NV12;
  if (args->data == nullptr || (nv12 && args->chroma == nullptr) || args->tables == nullptr ||
      args->pixel_values == nullptr || args->workspace == nullptr) {
    return FOPRU_FRAME_NULL_POINTER;
  }
  const std::int64_t pixel = bytes_of_pixel(args->format);
  if (pixel == 0 || args->matrix < FOPRU_FRAME_BT601_LIMITED || args->matrix > FOPRU_FRAME_BT709_FULL) {
    return FOPRU_FRAME_BAD_FORMAT;
  }
  const FopruFrameStatus status = frame_layout(*args, layout);
  if (status != FOPRU_FRAME_OK) {
    return status;
  }
  if (nv12 && (args->height % 2 != 0 || args->width % 2 != 0)) {
    return FOPRU_FRAME_BAD_SIZE;
  }
  if (args->stride < args->width * pixel || (nv12 && args->chroma_stride < args->width)) {
    return FOPRU_FRAME_BAD_STRIDE;
  }
  if (!aligned(args->tables) || !aligned(args->pixel_values)) {
    return FOPRU_FRAME_MISALIGNED;
  }
  if (args->tables_bytes < fopru_frame_tables_bytes(args) || args->workspace_bytes < fopru_frame_workspace_bytes(args)) {
    return FOPRU_FRAME_TOO_SMALL;
  }
  return FOPRU_FRAME_OK;
}

}  // namespace fopru

extern "C" {

std::size_t fopru_frame_tables_bytes(const FopruFramePixelsArgs* args) {
  fopru::FrameLayout layout;
  const bool known = args != nullptr && fopru::frame_layout(*args, layout) == FOPRU_FRAME_OK;
  return known ? static_cast<std::size_t>(layout.tables_bytes) : 0;
}

std::size_t fopru_frame_workspace_bytes(const FopruFramePixelsArgs* args) {
  fopru::FrameLayout layout;
  const bool known = args != nullptr && fopru::frame_layout(*args, layout) == FOPRU_FRAME_OK;
  return known ? std::size_t{3} * static_cast<std::size_t>(layout.between_height) * static_cast<std::size_t>(layout.between_width)
               : 0;
}

FopruFrameStatus fopru_frame_tables(const FopruFramePixelsArgs* args, double rescale, const float* mean, const float* std,
                                    void* tables, std::size_t bytes) {
  if (args == nullptr || mean == nullptr || std == nullptr || tables == nullptr) {
    return FOPRU_FRAME_NULL_POINTER;
  }
  if (args->struct_bytes != sizeof(FopruFramePixelsArgs)) {
    return FOPRU_FRAME_STRUCT_MISMATCH;
  }
  fopru::FrameLayout layout;
  const FopruFrameStatus status = fopru::frame_layout(*args, layout);
  if (status != FOPRU_FRAME_OK) {
    return status;
  }
  if (!fopru::aligned(tables)) {
    return FOPRU_FRAME_MISALIGNED;
  }
  if (bytes < static_cast<std::size_t>(layout.tables_bytes)) {
    return FOPRU_FRAME_TOO_SMALL;
  }
  try {
    float* levels = static_cast<float*>(tables);
    for (int i = 0; i < fopru::kLevels; ++i) {
      // in double, then rounded once; mean and std in float, as the image processors do
      levels[i] = (static_cast<float>(i % 256 * rescale) - mean[i / 256]) / std[i / 256];
    }
    std::int32_t* words = static_cast<std::int32_t*>(tables);
    fopru::put_axis(layout.rows, args->filter, words);
    fopru::put_axis(layout.columns, args->filter, words);
  } catch (const std::bad_alloc&) {
    return FOPRU_FRAME_OUT_OF_MEMORY;
  }
  return FOPRU_FRAME_OK;
}

const char* fopru_frame_status_string(FopruFrameStatus status) {
  switch (status) {
    case FOPRU_FRAME_OK:
      return "ok";
    case FOPRU_FRAME_NULL_POINTER:
      return "args, data, tables, pixel_values, workspace or the chroma of an NV12 frame is null; only stream may be";
    case FOPRU_FRAME_STRUCT_MISMATCH:
      return "struct_bytes is not sizeof(FopruFramePixelsArgs): caller and library were built with different headers";
    case FOPRU_FRAME_BAD_FORMAT:
      return "format is none of FOPRU_FRAME_RGB to FOPRU_FRAME_NV12, or matrix none of the four";
    case FOPRU_FRAME_BAD_SIZE:
      return "sides must be at least 1, those of NV12 even, and frame, resized frame and workspace have at most 2^26 pixels";
    case FOPRU_FRAME_BAD_CROP:
      return "the crop must lie within the resized frame and have at least one pixel";
    case FOPRU_FRAME_BAD_STRIDE:
      return "strides are counted in bytes and must not be shorter than a row";
    case FOPRU_FRAME_BAD_FILTER:
      return "filter must be 1 Lanczos, 2 bilinear, 3 bicubic, 4 box or 5 Hamming";
    case FOPRU_FRAME_MISALIGNED:
      return "tables and pixel_values must be aligned to 4 bytes";
    case FOPRU_FRAME_TOO_SMALL:
      return "tables or workspace have fewer bytes than fopru_frame_tables_bytes and fopru_frame_workspace_bytes ask for";
    case FOPRU_FRAME_LAUNCH_FAILED:
      return "the driver refused a kernel; cudaGetLastError says why, often a device the library was not compiled for";
    case FOPRU_FRAME_OUT_OF_MEMORY:
      return "there is not enough host memory for the weights or for the picture of the reference";
  }
  return "unknown status";
}

}  // extern "C"
