// Internal: the tile of float16 and bfloat16, by tensor cores through nvcuda::wmma (compute capability 8.0 and above).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "tiles.cuh"

namespace fopru {

template <class T, int D>
class TensorTile {
 public:
  using Element = T;
  static constexpr int kDepth = D;
  static constexpr int kRows = 16 * kWarps;              // 16 rows a warp
  static constexpr int kColumns = D > 96 ? 32 : 64;
  static constexpr int kStages = 2;                      // one tile of B is copied while the other is used
  static constexpr int kRowsPerThread = 1;
  static constexpr int kColumnsPerThread = kColumns / 2;
  static constexpr int kLanesPerRow = 2;
  static constexpr int kStride = D + 8;                  // an odd number of 16 bytes: rows start in different banks
  static constexpr int kLogitStride = kColumns + 4;      // likewise for the float tile

  struct Shared {
    alignas(128) T b[kStages][kColumns][kStride];
    alignas(128) float logits[kWarps][16][kLogitStride];
    alignas(16) float bias[kStages][kColumns];
  };

  // A stays in registers as fragments, so its rows may pass through the memory of B.
  __device__ void load_a(Shared& shared, const Rows<T>& a, int first) {
    static_assert(kStages * kColumns >= kRows, "A passes through the stages of B");
    auto& rows = *reinterpret_cast<T(*)[kRows][kStride]>(&shared.b);
    load_rows<D>(rows, a, first);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    for (int k = 0; k < D / 16; ++k) {
      nvcuda::wmma::load_matrix_sync(a_[k], &rows[16 * warp()][16 * k], kStride);
    }
    __syncthreads();
  }

  // Fragments do not say which element a lane holds, so the product goes through shared memory, a warp's own part of it.
  __device__ void logits(Shared& shared, int stage, float scale, float (&out)[kRowsPerThread][kColumnsPerThread]) {
    using namespace nvcuda;
    for (int n = 0; n < kColumns; n += 16) {
      wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
      wmma::fill_fragment(sum, 0.0F);
      for (int k = 0; k < D / 16; ++k) {
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
        wmma::load_matrix_sync(b, &shared.b[stage][n][16 * k], kStride);
        wmma::mma_sync(sum, a_[k], b, sum);
      }
      wmma::store_matrix_sync(&shared.logits[warp()][0][n], sum, kLogitStride, wmma::mem_row_major);
    }
    __syncwarp();
    const float* mine = shared.logits[warp()][lane() / 2];
    for (int c = 0; c < kColumnsPerThread; c += 4) {
      const float4 product = load4(mine + column(c));
      const float4 bias = load4(shared.bias[stage] + column(c));
      out[0][c] = fmaf(product.x, scale, bias.x);
      out[0][c + 1] = fmaf(product.y, scale, bias.y);
      out[0][c + 2] = fmaf(product.z, scale, bias.z);
      out[0][c + 3] = fmaf(product.w, scale, bias.w);
    }
  }

  __device__ static int row(int /*r*/) { return 16 * warp() + lane() / 2; }

  // Groups of 4 for 16-byte reads. The two halves of a row start 4 groups apart where they would meet in one bank.
  __device__ static int column(int c) {
    constexpr int kShift = kColumns == 64 ? 4 : 0;
    const int half = lane() % 2;
    return half * kColumnsPerThread + (c / 4 + kShift * half) % (kColumnsPerThread / 4) * 4 + c % 4;
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major> a_[D / 16];
};

}  // namespace fopru
