// Internal: the tile of float16 and bfloat16, by tensor cores through nvcuda::wmma (compute capability 8.0 and above).
//
// A warp owns 16 rows of A and keeps them as fragments. wmma does not say which element of a product a lane holds, but in one
// kernel it is the same for every fragment of the type, and element-wise work is allowed (CUDA C++ programming guide, warp
// matrix functions). So element e of lane l is a slot, the products of the tile's 16-column parts are its logits, running sums
// never leave the registers, and the product never goes through shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "tiles.cuh"

namespace fopru {

// Parts: how many 16-column parts of the tile are in registers at a time.
template <class T, int D, int Parts>
class TensorTile {
  using Product = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;

 public:
  using Element = T;
  static constexpr int kDepth = D;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kColumns = 64;
  static constexpr int kStages = 2;  // one tile of B is copied while the other is used
  static constexpr int kSlots = Product::num_elements;
  static constexpr int kPerSlot = Parts;
  static constexpr int kBlocks = Parts > 2 && D > 64 ? 3 : 4;  // a multiprocessor holds at least so many by registers
  static constexpr int kBiasRows = 16;                         // a bias is added as a product of equal rows
  static constexpr int kStride = D + 8;                        // an odd number of 16 bytes: rows start in different banks
  static constexpr int kBiasStride = kColumns + 4;
  static constexpr int kSlotStride = kSlotsPerRow + 4;

  struct Shared {
    union {
      alignas(128) T b[kStages][kColumns][kStride];
      alignas(128) float slots[2][kRows][kSlotStride];
    };
    alignas(128) float bias[kStages][kBiasRows][kBiasStride];
  };

  // The rows pass through the memory of B.
  __device__ void load_a(Shared& shared, const Rows<T>& a, int first) {
    static_assert(kStages * kColumns >= kRows, "A fits the stages of B");
    auto& rows = *reinterpret_cast<T(*)[kRows][kStride]>(&shared.b);
    load_rows<D>(rows, a, first);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      nvcuda::wmma::load_matrix_sync(a_[k], &rows[first_row()][16 * k], kStride);
    }
    __syncthreads();
  }

  __device__ void logits(Shared& shared, int stage, int part, float scale, bool biased, float (&out)[kSlots][kPerSlot]) {
    using namespace nvcuda;
    const int first = 16 * kPerSlot * part;
#pragma unroll
    for (int n = 0; n < kPerSlot; ++n) {
      Product product;
      wmma::fill_fragment(product, 0.0F);
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
        wmma::load_matrix_sync(b, &shared.b[stage][first + 16 * n][16 * k], kStride);
        wmma::mma_sync(product, a_[k], b, product);
      }
      Product bias;
      if (biased) {
        wmma::load_matrix_sync(bias, &shared.bias[stage][0][first + 16 * n], kBiasStride, wmma::mem_row_major);
      } else {
        wmma::fill_fragment(bias, 0.0F);
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        out[slot][n] = fmaf(product.x[slot], scale, bias.x[slot]);
      }
    }
  }

  __device__ static void put(Shared& shared, int matrix, const float (&values)[kSlots]) {
    Product product;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      product.x[slot] = values[slot];
    }
    nvcuda::wmma::store_matrix_sync(&shared.slots[matrix][first_row()][0], product, kSlotStride, nvcuda::wmma::mem_row_major);
  }

  __device__ static void take(const Shared& shared, int matrix, float (&values)[kSlots]) {
    Product product;
    nvcuda::wmma::load_matrix_sync(product, &shared.slots[matrix][first_row()][0], kSlotStride, nvcuda::wmma::mem_row_major);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      values[slot] = product.x[slot];
    }
  }

 private:
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }

  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major> a_[D / 16];
};

}  // namespace fopru
