// nvcuda::wmma for 16 x 16 x 16 with float accumulators. Lane 0 holds and computes the whole tile; the other lanes only count
// that they were there. Which lane holds which element is nobody's business, here as on a GPU.
#pragma once

#include <cstdint>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "fibers.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "only this shape is modelled");
  float tile[16][16];  // [row][column] of the matrix, whatever its layout in memory
};

inline float to_float(__half value) { return __half2float(value); }
inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// Counts the call and says whether this lane does the work.
inline bool joins() {
  ++cuda_on_cpu::scheduler.current().collectives;
  return threadIdx.x % 32 == 0;
}

inline void check(const void* memory, unsigned int stride, unsigned int multiple) {
  cuda_on_cpu::require(reinterpret_cast<std::uintptr_t>(memory) % 32 == 0, "a wmma tile must start at a multiple of 32 bytes");
  cuda_on_cpu::require(stride % multiple == 0, "the stride of a wmma tile must be a multiple of 16 bytes");
}

template <class T>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, row_major>& to, const T* from, unsigned int stride) {
  check(from, stride, 8);
  if (joins()) {
    for (unsigned int i = 0; i < 16; ++i) {
      for (unsigned int k = 0; k < 16; ++k) {
        to.tile[i][k] = to_float(from[i * stride + k]);
      }
    }
  }
}

template <class T>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, col_major>& to, const T* from, unsigned int stride) {
  check(from, stride, 8);
  if (joins()) {
    for (unsigned int j = 0; j < 16; ++j) {
      for (unsigned int k = 0; k < 16; ++k) {
        to.tile[k][j] = to_float(from[j * stride + k]);
      }
    }
  }
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& to, float value) {
  if (joins()) {
    for (auto& row : to.tile) {
      for (float& element : row) {
        element = value;
      }
    }
  }
}

template <class T>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& to, const fragment<matrix_a, 16, 16, 16, T, row_major>& a,
              const fragment<matrix_b, 16, 16, 16, T, col_major>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
  if (joins()) {
    for (int i = 0; i < 16; ++i) {
      float sums[16];
      for (int j = 0; j < 16; ++j) {
        sums[j] = c.tile[i][j];
      }
      for (int k = 0; k < 16; ++k) {
        for (int j = 0; j < 16; ++j) {
          sums[j] += a.tile[i][k] * b.tile[k][j];
        }
      }
      for (int j = 0; j < 16; ++j) {
        to.tile[i][j] = sums[j];
      }
    }
  }
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& from, unsigned int stride,
                              layout_t /*layout*/) {
  check(to, stride, 4);
  if (joins()) {
    for (unsigned int i = 0; i < 16; ++i) {
      for (unsigned int j = 0; j < 16; ++j) {
        to[i * stride + j] = from.tile[i][j];
      }
    }
  }
}

}  // namespace nvcuda::wmma
