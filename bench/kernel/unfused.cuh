// The plain form, to time beside the fused one: P [heads, tokens, tokens] in global memory, float32 as the fused kernels
// accumulate, then softmax in place, then column means. One image.
#pragma once

#include <cmath>
#include <cstdint>

#include "tensor_tile.cuh"

namespace bench {

constexpr int kTileRows = 64;
template <int D>
constexpr int kTileColumns = D > 96 ? 32 : 64;  // below 48 KiB of shared memory
constexpr int kSlices = 16;                     // partial column sums, so that the last step has enough threads

__host__ __device__ inline int divide_up(int count, int by) { return (count + by - 1) / by; }

struct Unfused {
  const __half* q;  // [heads, tokens, head_dim]
  const __half* k;
  float* p;        // [heads, tokens, tokens]
  float* partial;  // [heads, kSlices, tokens]
  float* scores;   // [tokens]
  int heads, tokens, head_dim;
  float scale;
};

template <int D>
struct UnfusedTile {
  alignas(128) __half a[kTileRows][D + 8];
  alignas(128) __half b[kTileColumns<D>][D + 8];
  alignas(128) float product[kTileRows][kTileColumns<D> + 4];
};

// P = Q K^T * scale, one tile a block: 64 rows, 16 a warp, the product through shared memory so that ragged edges can be cut.
template <int D>
__global__ void __launch_bounds__(fopru::kThreads) unfused_logits(Unfused u) {
  using namespace nvcuda;
  constexpr int kColumns = kTileColumns<D>;
  __shared__ UnfusedTile<D> shared;
  const int across = divide_up(u.tokens, kColumns);
  const int down = divide_up(u.tokens, kTileRows);
  const int block = static_cast<int>(blockIdx.x);
  const int column = block % across * kColumns;
  const int row = block / across % down * kTileRows;
  const std::int64_t head = block / across / down;
  const std::int64_t base = head * u.tokens * u.head_dim;
  fopru::load_rows<D>(shared.a, fopru::Rows<__half>{u.q + base, u.head_dim, u.tokens, u.head_dim}, row);
  fopru::load_rows<D>(shared.b, fopru::Rows<__half>{u.k + base, u.head_dim, u.tokens, u.head_dim}, column);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();

  const int first_row = static_cast<int>(threadIdx.x) / 32 * 16;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> rows[D / 16];
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    wmma::load_matrix_sync(rows[k], &shared.a[first_row][16 * k], D + 8);
  }
#pragma unroll
  for (int n = 0; n < kColumns; n += 16) {
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0F);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> columns;
      wmma::load_matrix_sync(columns, &shared.b[n][16 * k], D + 8);
      wmma::mma_sync(sum, rows[k], columns, sum);
    }
    wmma::store_matrix_sync(&shared.product[first_row][n], sum, kColumns + 4, wmma::mem_row_major);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kColumns; i += fopru::kThreads) {
    const int r = i / kColumns;
    const int c = i % kColumns;
    if (row + r < u.tokens && column + c < u.tokens) {
      u.p[(head * u.tokens + row + r) * u.tokens + column + c] = shared.product[r][c] * u.scale;
    }
  }
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

inline cudaError_t launch(void (*kernel)(Unfused), int blocks, Unfused u) {
  void* parameters[] = {&u};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned int>(blocks)), dim3(fopru::kThreads), parameters, 0, nullptr);
}

template <int D>
cudaError_t launch_logits(const Unfused& u) {
  return launch(unfused_logits<D>, divide_up(u.tokens, kTileColumns<D>) * divide_up(u.tokens, kTileRows) * u.heads, u);
}

// Queues the four kernels on the default stream.
inline cudaError_t run_unfused(const Unfused& u) {
  const cudaError_t errors[] = {u.head_dim <= 64   ? launch_logits<64>(u)
                                : u.head_dim <= 80 ? launch_logits<80>(u)
                                                   : launch_logits<128>(u),
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
