// Internal: the tile of float32, by plain multiply-adds, never TF32. 16 neighbouring threads share kSlots rows.
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
  static constexpr int kStages = 1;  // several blocks a multiprocessor hide the copies instead
  static constexpr int kSlots = kRows * kSlotsPerRow / kThreads;
  static constexpr int kPerSlot = kColumns / kSlotsPerRow;
  static constexpr int kBlocks = 3;
  static constexpr int kBiasRows = 1;
  static constexpr int kStride = D + 4;  // an odd number of 16 bytes: rows start in different banks

  struct Shared {
    alignas(16) float a[kRows][kStride];
    union {
      alignas(16) float b[kStages][kColumns][kStride];
      float slots[2][kRows][kSlotsPerRow];
    };
    float bias[kStages][kBiasRows][kColumns];
  };

  // The first tile of B commits these copies with its own and waits for both.
  __device__ void load_a(Shared& shared, const Rows<float>& a, int first) { load_rows<D>(shared.a, a, first); }

  __device__ void logits(Shared& shared, int stage, int /*part*/, float scale, bool biased, float (&out)[kSlots][kPerSlot]) {
    float sums[kSlots][kPerSlot] = {};
#pragma unroll 4
    for (int d = 0; d < D; d += 4) {
      float4 b[kPerSlot];
#pragma unroll
      for (int c = 0; c < kPerSlot; ++c) {
        b[c] = load4(&shared.b[stage][column(c)][d]);
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const float4 a = load4(&shared.a[row(slot)][d]);
#pragma unroll
        for (int c = 0; c < kPerSlot; ++c) {
          sums[slot][c] = fmaf(a.x, b[c].x, fmaf(a.y, b[c].y, fmaf(a.z, b[c].z, fmaf(a.w, b[c].w, sums[slot][c]))));
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kPerSlot; ++c) {
      const float bias = biased ? shared.bias[stage][0][column(c)] : 0.0F;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        out[slot][c] = fmaf(sums[slot][c], scale, bias);
      }
    }
  }

  __device__ static void put(Shared& shared, int matrix, const float (&values)[kSlots]) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      shared.slots[matrix][row(slot)][column(0)] = values[slot];
    }
  }

  __device__ static void take(const Shared& shared, int matrix, float (&values)[kSlots]) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      values[slot] = shared.slots[matrix][row(slot)][column(0)];
    }
  }

 private:
  __device__ static int row(int slot) {
    return static_cast<int>(threadIdx.x) / kSlotsPerRow + slot * (kThreads / kSlotsPerRow);
  }
  __device__ static int column(int c) { return static_cast<int>(threadIdx.x) % kSlotsPerRow + c * kSlotsPerRow; }
};

}  // namespace fopru
