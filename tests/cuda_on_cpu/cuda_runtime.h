// Stands in for CUDA's header of this name when the kernels are compiled for the CPU: just what they use.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "cuda_host.h"
#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one at a time, so one copy per kernel is the block's
#define __launch_bounds__(...)

struct __attribute__((aligned(16), may_alias)) float4 {  // CUDA programs read float arrays through it
  float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { cuda_on_cpu::scheduler.wait_for(cuda_on_cpu::Wait::block); }
inline void __syncwarp() { cuda_on_cpu::scheduler.wait_for(cuda_on_cpu::Wait::warp); }

inline float __shfl_xor_sync(unsigned int mask, float value, int apart) {
  using namespace cuda_on_cpu;
  require(mask == 0xFFFFFFFFU, "only shuffles of whole warps are modelled");
  scheduler.current().exchanged = value;
  scheduler.wait_for(Wait::warp);
  const double received = scheduler.lane_of_this_warp(threadIdx.x % 32 ^ static_cast<unsigned int>(apart)).exchanged;
  scheduler.wait_for(Wait::warp);
  return static_cast<float>(received);
}

namespace cuda_on_cpu {

template <class... Parameters, std::size_t... Index>
void call(void (*kernel)(Parameters...), void** values, std::index_sequence<Index...>) {
  kernel(*static_cast<Parameters*>(values[Index])...);
}

}  // namespace cuda_on_cpu

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** values, std::size_t /*shared*/,
                             cudaStream_t /*stream*/) {
  using namespace cuda_on_cpu;
  if (launches_until_failure >= 0 && launches_until_failure-- == 0) {
    return cudaErrorInvalidDeviceFunction;
  }
  scheduler.run(grid, block, [&] { call(kernel, values, std::index_sequence_for<Parameters...>()); });
  return cudaSuccess;
}
