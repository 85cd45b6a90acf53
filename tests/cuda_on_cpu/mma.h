// nvcuda::wmma for 16 x 16 x 16 with float accumulators. Lane l holds, of an accumulator, the elements (2 e + l / 16, l % 16)
// for e in 0..7: not the layout of any GPU, so a kernel that assumes one is found out. Of the factors it holds the rows and
// the column that its elements need; no lane sees another's registers.
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
struct fragment;

template <class T>
struct fragment<matrix_a, 16, 16, 16, T, row_major> {
  float rows[8][16];
};

template <class T>
struct fragment<matrix_b, 16, 16, 16, T, col_major> {
  float column[16];
};

template <>
struct fragment<accumulator, 16, 16, 16, float> {
  static constexpr int num_elements = 8;
  float x[num_elements];
};

inline float to_float(__half value) { return __half2float(value); }
inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

inline unsigned int row_of(unsigned int element) { return 2 * element + threadIdx.x % 32 / 16; }
inline unsigned int column() { return threadIdx.x % 16; }

// Counts that this lane joined, and holds the caller to what wmma asks of pointers and strides.
inline void join(const void* memory, unsigned int stride, unsigned int multiple) {
  ++cuda_on_cpu::scheduler.current().collectives;
  cuda_on_cpu::require(reinterpret_cast<std::uintptr_t>(memory) % 32 == 0, "a wmma tile must start at a multiple of 32 bytes");
  cuda_on_cpu::require(stride % multiple == 0, "the stride of a wmma tile must be a multiple of 16 bytes");
}

template <class T>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, row_major>& to, const T* from, unsigned int stride) {
  join(from, stride, 8);
  for (unsigned int e = 0; e < 8; ++e) {
    for (unsigned int k = 0; k < 16; ++k) {
      to.rows[e][k] = to_float(from[row_of(e) * stride + k]);
    }
  }
}

template <class T>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, col_major>& to, const T* from, unsigned int stride) {
  join(from, stride, 8);
  for (unsigned int k = 0; k < 16; ++k) {
    to.column[k] = to_float(from[column() * stride + k]);
  }
}

inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float>& to, const float* from, unsigned int stride,
                             layout_t /*layout*/) {
  join(from, stride, 4);
  for (unsigned int e = 0; e < 8; ++e) {
    to.x[e] = from[row_of(e) * stride + column()];
  }
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& from, unsigned int stride,
                              layout_t /*layout*/) {
  join(to, stride, 4);
  for (unsigned int e = 0; e < 8; ++e) {
    to[row_of(e) * stride + column()] = from.x[e];
  }
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& to, float value) {
  for (float& element : to.x) {
    element = value;
  }
}

template <class T>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& to, const fragment<matrix_a, 16, 16, 16, T, row_major>& a,
              const fragment<matrix_b, 16, 16, 16, T, col_major>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
  ++cuda_on_cpu::scheduler.current().collectives;
  for (int e = 0; e < 8; ++e) {
    float sum = c.x[e];
    for (int k = 0; k < 16; ++k) {
      sum += a.rows[e][k] * b.column[k];
    }
    to.x[e] = sum;
  }
}

}  // namespace nvcuda::wmma
