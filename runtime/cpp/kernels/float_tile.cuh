// Internal: the tile of float32, by plain multiply-adds, never TF32.
#pragma once

#include "tiles.cuh"

namespace fopru {

template <int D>
class FloatTile {
 public:
  using Element = float;
  static constexpr int kDepth = D;
  static constexpr int kRows = D > 96 ? 32 : 64;
  static constexpr int kColumns = D > 80 ? 32 : 64;
  static constexpr int kStages = 1;  // several blocks per multiprocessor hide the copies instead
  static constexpr int kLanesPerRow = 16;
  static constexpr int kRowsPerThread = kRows * kLanesPerRow / kThreads;
  static constexpr int kColumnsPerThread = kColumns / kLanesPerRow;
  static constexpr int kStride = D + 4;

  struct Shared {
    alignas(16) float a[kRows][kStride];
    alignas(16) float b[kStages][kColumns][kStride];
    alignas(16) float bias[kStages][kColumns];
  };

  // The first tile of B commits these copies with its own and waits for both.
  __device__ void load_a(Shared& shared, const Rows<float>& a, int first) { load_rows<D>(shared.a, a, first); }

  __device__ void logits(Shared& shared, int stage, float scale, float (&out)[kRowsPerThread][kColumnsPerThread]) {
    float sums[kRowsPerThread][kColumnsPerThread] = {};
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
      float4 b[kColumnsPerThread];
      for (int c = 0; c < kColumnsPerThread; ++c) {
        b[c] = load4(&shared.b[stage][column(c)][d]);
      }
      for (int r = 0; r < kRowsPerThread; ++r) {
        const float4 a = load4(&shared.a[row(r)][d]);
        for (int c = 0; c < kColumnsPerThread; ++c) {
          sums[r][c] = fmaf(a.x, b[c].x, fmaf(a.y, b[c].y, fmaf(a.z, b[c].z, fmaf(a.w, b[c].w, sums[r][c]))));
        }
      }
    }
    for (int r = 0; r < kRowsPerThread; ++r) {
      for (int c = 0; c < kColumnsPerThread; ++c) {
        out[r][c] = fmaf(sums[r][c], scale, shared.bias[stage][column(c)]);
      }
    }
  }

  __device__ static int row(int r) { return static_cast<int>(threadIdx.x) / kLanesPerRow + r * (kThreads / kLanesPerRow); }
  __device__ static int column(int c) { return static_cast<int>(threadIdx.x) % kLanesPerRow + c * kLanesPerRow; }
};

}  // namespace fopru
