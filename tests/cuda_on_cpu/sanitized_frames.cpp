// Frames on buffers of exactly the size asked for, under the sanitizers: kernels and reference give the same bits.
#include <cstdio>
#include <cstring>
#include <vector>

#include "frame_pixels.h"

namespace {

struct Case {
  FopruFrameFormat format;
  int filter, height, width, resized_height, resized_width, top, left, crop_height, crop_width;
};

constexpr Case kCases[] = {
    {FOPRU_FRAME_NV12, 3, 34, 50, 12, 16, 1, 2, 10, 12},  // columns first
    {FOPRU_FRAME_NV12, 3, 90, 20, 12, 16, 0, 0, 12, 16},  // rows first
    {FOPRU_FRAME_NV12, 1, 90, 20, 12, 16, 11, 15, 1, 1},  // the last corner
    {FOPRU_FRAME_RGB, 2, 7, 9, 14, 30, 3, 0, 11, 30},
    {FOPRU_FRAME_BGRA, 4, 33, 1, 2, 1, 0, 0, 2, 1},
    {FOPRU_FRAME_RGBA, 5, 1, 40, 3, 3, 0, 1, 3, 2},
    {FOPRU_FRAME_BGR, 3, 5, 6, 5, 6, 0, 0, 5, 6},
    {FOPRU_FRAME_GRAY, 1, 60, 300, 20, 7, 4, 1, 9, 6},
};

std::vector<std::uint8_t> bytes_of(std::size_t count, unsigned int seed) {
  std::vector<std::uint8_t> bytes(count);
  for (std::uint8_t& byte : bytes) {
    seed = seed * 1664525U + 1013904223U;
    byte = static_cast<std::uint8_t>(seed >> 24);
  }
  return bytes;
}

bool agree(const Case& c) {
  FopruFramePixelsArgs args;
  args.format = c.format;
  args.filter = c.filter;
  args.height = c.height;
  args.width = c.width;
  args.resized_height = c.resized_height;
  args.resized_width = c.resized_width;
  args.top = c.top;
  args.left = c.left;
  args.crop_height = c.crop_height;
  args.crop_width = c.crop_width;
  const int pixel[] = {3, 3, 4, 4, 1, 1};
  args.stride = std::int64_t{c.width} * pixel[c.format] + 3;
  args.chroma_stride = c.width + 1;
  // the last row has no padding behind it
  const std::vector<std::uint8_t> data = bytes_of(static_cast<std::size_t>(args.stride) * c.height - 3, 1);
  const std::vector<std::uint8_t> chroma =
      bytes_of(static_cast<std::size_t>(args.chroma_stride) * ((c.height + 1) / 2) - 1, 2);
  args.data = data.data();
  args.chroma = chroma.data();
  std::vector<std::int32_t> tables(fopru_frame_tables_bytes(&args) / 4);
  std::vector<std::uint8_t> workspace(fopru_frame_workspace_bytes(&args));
  const float mean[3] = {0.5F, 0.4F, 0.3F};
  const float std[3] = {0.2F, 0.3F, 0.4F};
  args.tables = tables.data();
  args.tables_bytes = tables.size() * 4;
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  if (fopru_frame_tables(&args, 1.0 / 255.0, mean, std, tables.data(), tables.size() * 4) != FOPRU_FRAME_OK) {
    return false;
  }
  std::vector<float> first(static_cast<std::size_t>(3) * c.crop_height * c.crop_width, -9.0F);
  std::vector<float> second(first);
  args.pixel_values = first.data();
  const FopruFrameStatus kernels = fopru_frame_pixels(&args, nullptr);
  args.pixel_values = second.data();
  const FopruFrameStatus reference = fopru_frame_pixels_reference(&args, nullptr);
  return kernels == FOPRU_FRAME_OK && reference == FOPRU_FRAME_OK &&
         std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0;
}

}  // namespace

int main() {
  int done = 0;
  for (const Case& c : kCases) {
    if (!agree(c)) {
      std::printf("case %d differs\n", done);
      return 1;
    }
    ++done;
  }
  std::printf("%d cases\n", done);
  return 0;
}
