// Internal: a tile of logits A B^T * scale + bias, computed by one block and left in registers, spread over its threads.
//
// Two forms with one interface: tensor_tile.cuh (float16, bfloat16) and float_tile.cuh (float32). A thread has kSlots slots.
// A slot belongs to one row of A for good, and each part of a tile puts kPerSlot logits of that row into it. Which row is the
// tile's own business (tensor cores do not say), so what a kernel keeps per slot enters and leaves as a matrix [kRows][16] in
// shared memory: 16 slots share a row.
//
//     kRows, kColumns      the tile: rows of A, rows of B
//     Shared               what the block keeps in shared memory, below 48 KiB, so that nothing has to be opted into. `slots`
//                          lies over `b`: it may be used before load_a and after sweep
//     load_a               asks for the block's rows of A; the whole block calls it, once, before sweep
//     logits               this thread's slots against one part (16 * kPerSlot columns) of a loaded tile of B
//     put, take            slots to and from Shared::slots; a barrier lies between put and reading it, writing it and take
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
constexpr int kSlotsPerRow = 16;

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

// For each part of b's rows [begin, b.end): computes the logits against A and calls visit(float (&logits)[kSlots][kPerSlot]).
// bias(row of b) is added where `biased`; the whole block agrees on that, and calls this together.
template <class Tile, class Bias, class Visit>
__device__ inline void sweep(Tile& tile, typename Tile::Shared& shared, const Rows<typename Tile::Element>& b, int begin,
                             float scale, bool biased, Bias bias, Visit visit) {
  constexpr int kAhead = Tile::kStages - 1;
  const auto is_biased = [&](int first) { return biased || first + Tile::kColumns > b.end; };
  const auto fetch = [&](int first, int stage) {
    if (first < b.end) {
      load_rows<Tile::kDepth>(shared.b[stage], b, first);
      if (is_biased(first)) {
        const int column = static_cast<int>(threadIdx.x) % Tile::kColumns;
        const float value = first + column >= b.end ? -INFINITY : biased ? bias(first + column) : 0.0F;
        for (int i = static_cast<int>(threadIdx.x) / Tile::kColumns; i < Tile::kBiasRows; i += kThreads / Tile::kColumns) {
          shared.bias[stage][i][column] = value;
        }
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
#pragma unroll 1
    for (int part = 0; part < Tile::kColumns / (kSlotsPerRow * Tile::kPerSlot); ++part) {
      float logits[Tile::kSlots][Tile::kPerSlot];
      tile.logits(shared, stage, part, scale, is_biased(first), logits);
      visit(logits);
    }
    __syncthreads();  // everybody has read this stage before it is filled again
    if constexpr (kAhead == 0) {
      fetch(first + Tile::kColumns, 0);
    }
    stage = (stage + 1) % Tile::kStages;
  }
}

}  // namespace fopru
