// Internal: a tile of logits A B^T * scale + bias, computed by one block, each thread left holding a part of it in registers.
//
// Two forms with one interface: TensorTile (float16 and bfloat16, tensor cores through nvcuda::wmma) and FloatTile (float32,
// plain multiply-adds, never TF32). `sweep` walks B in tiles of kColumns rows and shows every thread its part of each tile.
//
//     kRows, kColumns      the tile: rows of A, rows of B
//     kRowsPerThread, kColumnsPerThread, kLanesPerRow   what one thread holds; the lanes that share a row are neighbours
//     Shared               what the block keeps in shared memory, below 48 KiB, so that nothing has to be opted into
//     load_a               brings the block's rows of A in; the whole block calls it, once
//     logits               this thread's part against one loaded tile of B
//     row(r)               which of the kRows its r-th row is
//
// Rows past the end and depths past head_dim are zeros in shared memory, never read from global memory. A column past the end
// has bias -inf, so its exponential is 0.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cmath>
#include <cstdint>

namespace fopru {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlocks = 3;  // at least so many fit a multiprocessor by registers; shared memory allows as many from 132 KiB on

// The tokens of one (image, head). Row i < end starts at data + i * stride and has head_dim elements.
template <class T>
struct Rows {
  const T* data;
  std::int64_t stride;  // elements
  int end;
  int head_dim;
};

__device__ inline float4 load4(const float* aligned) { return *reinterpret_cast<const float4*>(aligned); }

// Queues rows [first, first + N) as N x D, zero where there is nothing. 16 bytes at a time; the caller commits and waits.
template <int D, class T, int N, int Stride>
__device__ inline void load_rows(T (&to)[N][Stride], const Rows<T>& rows, int first) {
  constexpr int kPerCopy = 16 / static_cast<int>(sizeof(T));
  constexpr int kCopies = D / kPerCopy;
  for (int i = static_cast<int>(threadIdx.x); i < N * kCopies; i += kThreads) {
    const int row = i / kCopies;
    const int depth = i % kCopies * kPerCopy;
    if (first + row < rows.end && depth < rows.head_dim) {
      __pipeline_memcpy_async(&to[row][depth], rows.data + (first + row) * rows.stride + depth, 16);
    } else {
      *reinterpret_cast<float4*>(&to[row][depth]) = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    }
  }
}

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
    for (int group = 0; group < kColumnsPerThread / 4; ++group) {
      // the two halves of a row start 4 groups apart where they would otherwise meet in one bank
      constexpr int kShift = kColumns == 64 ? 4 : 0;
      const int half = lane() % 2;
      const int column = half * kColumnsPerThread + (group + kShift * half) % (kColumnsPerThread / 4) * 4;
      const float4 product = load4(mine + column);
      const float4 bias = load4(shared.bias[stage] + column);
      out[0][4 * group] = fmaf(product.x, scale, bias.x);
      out[0][4 * group + 1] = fmaf(product.y, scale, bias.y);
      out[0][4 * group + 2] = fmaf(product.z, scale, bias.z);
      out[0][4 * group + 3] = fmaf(product.w, scale, bias.w);
    }
  }

  __device__ static int row(int /*r*/) { return 16 * warp() + lane() / 2; }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major> a_[D / 16];
};

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

  __device__ void load_a(Shared& shared, const Rows<float>& a, int first) {
    load_rows<D>(shared.a, a, first);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }

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

 private:
  __device__ static int column(int c) { return static_cast<int>(threadIdx.x) % kLanesPerRow + c * kLanesPerRow; }
};

// For each tile of b's rows [begin, b.end): computes the logits against A with bias(row of b) added, and calls
// visit(float (&logits)[kRowsPerThread][kColumnsPerThread], first row of the tile). The whole block calls it together.
template <class Tile, class Bias, class Visit>
__device__ inline void sweep(Tile& tile, typename Tile::Shared& shared, const Rows<typename Tile::Element>& b, int begin,
                             float scale, Bias bias, Visit visit) {
  constexpr int kAhead = Tile::kStages - 1;
  const auto fetch = [&](int first, int stage) {
    if (first < b.end) {
      load_rows<Tile::kDepth>(shared.b[stage], b, first);
      for (int c = static_cast<int>(threadIdx.x); c < Tile::kColumns; c += kThreads) {
        shared.bias[stage][c] = first + c < b.end ? bias(first + c) : -INFINITY;
      }
    }
    __pipeline_commit();  // an empty group past the end keeps the count of groups in flight
  };
  fetch(begin, 0);
  int stage = 0;
  for (int first = begin; first < b.end; first += Tile::kColumns) {
    if constexpr (kAhead > 0) {
      fetch(first + Tile::kColumns, (stage + 1) % Tile::kStages);
    }
    __pipeline_wait_prior(kAhead);
    __syncthreads();
    float logits[Tile::kRowsPerThread][Tile::kColumnsPerThread];
    tile.logits(shared, stage, scale, logits);
    visit(logits, first);
    __syncthreads();  // everybody has read this stage before it is filled again
    if constexpr (kAhead == 0) {
      fetch(first + Tile::kColumns, 0);
    }
    stage = (stage + 1) % Tile::kStages;
  }
}

}  // namespace fopru
