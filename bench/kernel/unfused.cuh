// The plain form, to time beside the fused one: P [heads, tokens, tokens] in global memory, float32 as the fused kernels
// accumulate, then softmax in place, then column means. One image.
#pragma once

#include <cmath>
#include <cstdint>

#include "tensor_tile.cuh"

namespace bench {

constexpr int kSlices = 16;  // partial column sums, so that the last step has enough threads

struct Unfused {
  const __half* q;  // [heads, tokens, head_dim]
  const __half* k;
  float* p;         // [heads, tokens, tokens]
  float* partial;   // [heads, kSlices, tokens]
  float* scores;    // [tokens]
  int heads, tokens, head_dim;
  float scale;
};

// P = Q K^T * scale, one tile a block, with the tile of the fused kernel: the same tensor cores, the same padding.
template <class Tile>
__global__ void __launch_bounds__(fopru::kThreads) unfused_logits(Unfused u) {
  __shared__ typename Tile::Shared shared;
  const int across = (u.tokens + Tile::kColumns - 1) / Tile::kColumns;
  const int down = (u.tokens + Tile::kRows - 1) / Tile::kRows;
  const int block = static_cast<int>(blockIdx.x);
  const int column = block % across * Tile::kColumns;
  const int row = block / across % down * Tile::kRows;
  const std::int64_t head = block / across / down;
  const std::int64_t base = head * u.tokens * u.head_dim;
  Tile tile;
  tile.load_a(shared, {u.q + base, u.head_dim, u.tokens, u.head_dim}, row);
  const int end = column + Tile::kColumns < u.tokens ? column + Tile::kColumns : u.tokens;
  const auto visit = [&](const float (&logits)[Tile::kRowsPerThread][Tile::kColumnsPerThread], int first) {
    for (int r = 0; r < Tile::kRowsPerThread; ++r) {
      for (int c = 0; c < Tile::kColumnsPerThread; ++c) {
        const int i = row + Tile::row(r);
        const int j = first + Tile::column(c);
        if (i < u.tokens && j < u.tokens) {
          u.p[(head * u.tokens + i) * u.tokens + j] = logits[r][c];
        }
      }
    }
  };
  fopru::sweep(tile, shared, {u.k + base, u.head_dim, end, u.head_dim}, column, u.scale, [](int) { return 0.0F; }, visit);
}

// Softmax of each row in place, one warp a row.
__global__ void __launch_bounds__(fopru::kThreads) unfused_softmax(Unfused u) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (fopru::kThreads / 32) + threadIdx.x / 32;
  if (row >= static_cast<std::int64_t>(u.heads) * u.tokens) {
    return;
  }
  float* p = u.p + row * u.tokens;
  float top = -INFINITY;
  for (int j = lane; j < u.tokens; j += 32) {
    top = fmaxf(top, p[j]);
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFU, top, apart));
  }
  float sum = 0.0F;
  for (int j = lane; j < u.tokens; j += 32) {
    p[j] = expf(p[j] - top);
    sum += p[j];
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, apart);
  }
  for (int j = lane; j < u.tokens; j += 32) {
    p[j] /= sum;
  }
}

// Column sums of one slice of the rows of one head; neighbouring threads read neighbouring columns.
__global__ void __launch_bounds__(fopru::kThreads) unfused_columns(Unfused u) {
  const int across = (u.tokens + fopru::kThreads - 1) / fopru::kThreads;
  const int column = static_cast<int>(blockIdx.x) % across * fopru::kThreads + static_cast<int>(threadIdx.x);
  const std::int64_t slice = static_cast<int>(blockIdx.x) / across;  // head * kSlices + slice of the head
  const std::int64_t head = slice / kSlices;
  if (column >= u.tokens) {
    return;
  }
  float sum = 0.0F;
  for (std::int64_t i = slice % kSlices; i < u.tokens; i += kSlices) {
    sum += u.p[(head * u.tokens + i) * u.tokens + column];
  }
  u.partial[slice * u.tokens + column] = sum;
}

__global__ void __launch_bounds__(fopru::kThreads) unfused_mean(Unfused u) {
  const int column = static_cast<int>(blockIdx.x) * fopru::kThreads + static_cast<int>(threadIdx.x);
  if (column >= u.tokens) {
    return;
  }
  float sum = 0.0F;
  for (std::int64_t slice = 0; slice < static_cast<std::int64_t>(u.heads) * kSlices; ++slice) {
    sum += u.partial[slice * u.tokens + column];
  }
  u.scores[column] = sum / (static_cast<float>(u.heads) * static_cast<float>(u.tokens));
}

inline int divide_up(int count, int by) { return (count + by - 1) / by; }

inline cudaError_t launch(void (*kernel)(Unfused), int blocks, Unfused u) {
  void* parameters[] = {&u};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned int>(blocks)), dim3(fopru::kThreads), parameters, 0, nullptr);
}

template <int D>
cudaError_t launch_logits(const Unfused& u) {
  using Tile = fopru::TensorTile<__half, D>;
  return launch(unfused_logits<Tile>, divide_up(u.tokens, Tile::kColumns) * divide_up(u.tokens, Tile::kRows) * u.heads, u);
}

// Queues the four kernels on the default stream.
inline cudaError_t run_unfused(const Unfused& u) {
  const cudaError_t errors[] = {
      u.head_dim <= 64 ? launch_logits<64>(u) : u.head_dim <= 80 ? launch_logits<80>(u) : launch_logits<128>(u),
      launch(unfused_softmax, divide_up(u.heads * u.tokens, fopru::kThreads / 32), u),
      launch(unfused_columns, divide_up(u.tokens, fopru::kThreads) * u.heads * kSlices, u),
      launch(unfused_mean, divide_up(u.tokens, fopru::kThreads), u)};
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace bench
