// A frame on the device to pixel values: colours, antialiased resize, crop and normalisation, as the runtime does them on the host.
//
//     pixel_values[c][y][x] = levels[c][resized[top + y][left + x][c]],    levels[c][v] = (v * rescale - mean[c]) / std[c]
//
// where `resized` is the frame in RGB, resized to resized_height x resized_width by a filter of Pillow in the integers of its
// Resample.c: every byte, and so every float, is what the runtime computes on the host. Columns and rows are two passes with
// bytes between; only what the crop needs is computed.
//
// Plain C types and linkage, so that a plugin, the C++ runtime and ctypes can call it. C++17. Nothing here throws.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum FopruFrameFormat : std::int32_t {
  FOPRU_FRAME_RGB = 0,
  FOPRU_FRAME_BGR = 1,
  FOPRU_FRAME_RGBA = 2,  // alpha is dropped
  FOPRU_FRAME_BGRA = 3,
  FOPRU_FRAME_GRAY = 4,
  FOPRU_FRAME_NV12 = 5,
};

enum FopruFrameMatrix : std::int32_t {  // of NV12
  FOPRU_FRAME_BT601_LIMITED = 0,
  FOPRU_FRAME_BT601_FULL = 1,
  FOPRU_FRAME_BT709_LIMITED = 2,
  FOPRU_FRAME_BT709_FULL = 3,
};

enum FopruFrameStatus : std::int32_t {
  FOPRU_FRAME_OK = 0,
  FOPRU_FRAME_NULL_POINTER = 1,
  FOPRU_FRAME_STRUCT_MISMATCH = 2,
  FOPRU_FRAME_BAD_FORMAT = 3,
  FOPRU_FRAME_BAD_SIZE = 4,
  FOPRU_FRAME_BAD_CROP = 5,
  FOPRU_FRAME_BAD_STRIDE = 6,
  FOPRU_FRAME_BAD_FILTER = 7,
  FOPRU_FRAME_MISALIGNED = 8,
  FOPRU_FRAME_TOO_SMALL = 9,
  FOPRU_FRAME_LAUNCH_FAILED = 10,
  FOPRU_FRAME_OUT_OF_MEMORY = 11,
};

struct FopruFramePixelsArgs {
  std::uint32_t struct_bytes = sizeof(FopruFramePixelsArgs);  // guards against a caller built with another header
  FopruFrameFormat format = FOPRU_FRAME_RGB;
  FopruFrameMatrix matrix = FOPRU_FRAME_BT601_LIMITED;
  std::int32_t filter = 3;  // Pillow's code: 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming

  std::int32_t height = 0;  // of the frame; both even for NV12; at most 2^26 pixels
  std::int32_t width = 0;
  std::int32_t resized_height = 0;  // at most 2^26 pixels
  std::int32_t resized_width = 0;
  std::int32_t top = 0;  // of the crop within what is resized
  std::int32_t left = 0;
  std::int32_t crop_height = 0;
  std::int32_t crop_width = 0;

  const void* data = nullptr;    // rows of pixels; of NV12 the luma. Read only, any alignment
  std::int64_t stride = 0;       // bytes from a row to the next
  const void* chroma = nullptr;  // NV12 alone: (U, V) pairs, height / 2 rows
  std::int64_t chroma_stride = 0;

  const void* tables = nullptr;  // on the device, a copy of what fopru_frame_tables wrote; read only, for any number of calls
  std::size_t tables_bytes = 0;
  float* pixel_values = nullptr;  // [3, crop_height, crop_width] contiguous, written whole

  void* workspace = nullptr;  // owned by this call until it has run; contents need no initialisation
  std::size_t workspace_bytes = 0;
};

// Bytes of the tables and of the workspace (3 bytes for each sample between the passes). 0 where the sizes, the crop or the
// filter are not allowed. Pointers are not looked at.
std::size_t fopru_frame_tables_bytes(const FopruFramePixelsArgs* args);
std::size_t fopru_frame_workspace_bytes(const FopruFramePixelsArgs* args);

// Writes the weights of both axes and the levels into host memory of `bytes` bytes, 4-byte aligned. Depends on sizes, crop,
// filter and the normalisation (mean and std are 3 floats each), not on the frame: once per camera, then copied to the device.
FopruFrameStatus fopru_frame_tables(const FopruFramePixelsArgs* args, double rescale, const float* mean, const float* std,
                                    void* tables, std::size_t bytes);

// Queues two kernels on `stream` (a cudaStream_t; null is the default stream) of the current device and returns. Allocates no
// device memory and never synchronises, so it may be captured into a graph. Arguments are checked first: any status but
// FOPRU_FRAME_OK and FOPRU_FRAME_LAUNCH_FAILED means that nothing was queued. Calls share no state: any number may run at once,
// each with its own workspace and pixel values.
FopruFrameStatus fopru_frame_pixels(const FopruFramePixelsArgs* args, void* stream);

// The same on the host with host pointers, in plain loops that make their own weights: what the kernels are compared with.
// Accepts and refuses exactly what they do; `stream` is ignored. FOPRU_FRAME_OUT_OF_MEMORY if it cannot have its memory.
FopruFrameStatus fopru_frame_pixels_reference(const FopruFramePixelsArgs* args, void* stream);

// One sentence for a status: what was wrong, what is allowed. Static storage, never null.
const char* fopru_frame_status_string(FopruFrameStatus status);

}  // extern "C"
