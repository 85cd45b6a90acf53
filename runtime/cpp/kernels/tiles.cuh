// Internal: a tile of logits A B^T * scale + bias, computed by one block, each thread left holding a part of it in registers.
//
// Two forms with one interface: tensor_tile.cuh (float16, bfloat16) and float_tile.cuh (float32). `sweep` walks B in tiles of
// kColumns rows and shows every thread its part of each tile.
//
//     kRows, kColumns      the tile: rows of A, rows of B
//     kRowsPerThread, kColumnsPerThread, kLanesPerRow   what one thread holds; the lanes that share a row are neighbours
//     Shared               what the block keeps in shared memory, below 48 KiB, so that nothing has to be opted into
//     load_a               asks for the block's rows of A; the whole block calls it, once, before sweep
//     logits               this thread's part against one loaded tile of B
//     row(r), column(c)    where in the tile the thread's element [r][c] lies
//
// Rows past the end and depths past head_dim are zeros in shared memory, never read from global memory. A column past the end
// has bias -inf, so its exponential is 0.
#pragma once

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

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
