// The kernels behind fopru_column_score. Logits are kept in units of log2, because the hardware has exp2 and log2.
#include "column_score.h"

#include "column_score_check.h"
#include "float_tile.cuh"
#include "tensor_tile.cuh"

namespace fopru {
namespace {

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.693147180559945309F;

// What a kernel gets, by value: the caller's arguments, with lse set in any case, and the two parts of the workspace.
struct Call {
  FopruColumnScoreArgs args;
  float* row_lse;      // [images, heads, tokens], natural; null where the caller gave it
  float* column_sums;  // [images, heads, tokens], summed over the query range
};

// Which (image, head) and which first row this block owns. Blocks of one head are neighbours, for the cache.
struct Place {
  __device__ Place(const FopruColumnScoreArgs& args, int rows, int rows_per_block, int begin) {
    const int blocks = (rows + rows_per_block - 1) / rows_per_block;
    const int pair = static_cast<int>(blockIdx.x) / blocks;
    image = pair / args.heads;
    head = pair % args.heads;
    first = begin + static_cast<int>(blockIdx.x) % blocks * rows_per_block;
  }

  template <class T>
  __device__ Rows<T> rows(const FopruColumnScoreArgs& args, const FopruTokens& view, int end) const {
    const T* data = static_cast<const T*>(view.data) + image * view.stride_image + head * view.stride_head;
    return {data, view.stride_token, end, args.head_dim};
  }

  // of [images, heads, tokens]
  __device__ std::int64_t offset(const FopruColumnScoreArgs& args) const {
    return (static_cast<std::int64_t>(image) * args.heads + head) * args.tokens;
  }

  int image;
  int head;
  int first;
};

// What the key mask adds to a logit, in log2: -inf for a removed key, 0 without a mask.
__device__ inline float key_bias(const FopruColumnScoreArgs& args, int image, int key) {
  if (args.key_mask == nullptr) {
    return 0.0F;
  }
  const float mask = args.key_mask[static_cast<std::int64_t>(image) * args.tokens + key];
  return mask <= FOPRU_KEY_REMOVED ? -INFINITY : mask * kLog2E;
}

// A sum of exp2 relative to a running maximum: total * exp2(top). fmaxf ignores NaN, the sum does not, so NaN comes through.
struct LogSum {
  float top = -INFINITY;
  float total = 0.0F;

  template <int N>
  __device__ void add(const float (&logits)[N]) {
    float new_top = top;
    for (int i = 0; i < N; ++i) {
      new_top = fmaxf(new_top, logits[i]);
    }
    const float base = new_top == -INFINITY ? 0.0F : new_top;  // -inf - -inf would be NaN
    float sum = 0.0F;
    for (int i = 0; i < N; ++i) {
      sum += exp2f(logits[i] - base);
    }
    total = fmaf(total, exp2f(top - base), sum);
    top = new_top;
  }

  __device__ void add(const LogSum& other) {
    const float new_top = fmaxf(top, other.top);
    const float base = new_top == -INFINITY ? 0.0F : new_top;
    total = total * exp2f(top - base) + other.total * exp2f(other.top - base);
    top = new_top;
  }

  __device__ float natural_log() const { return (top + log2f(total)) * kLn2; }  // -inf where nothing was added
};

// Pass 1. A block owns kRows queries of one (image, head) and walks all keys.
template <class Tile>
__global__ void __launch_bounds__(kThreads, kBlocks) row_lse_kernel(Call call) {
  using T = typename Tile::Element;
  __shared__ typename Tile::Shared shared;
  const FopruColumnScoreArgs& args = call.args;
  const Place place(args, args.query_end - args.query_begin, Tile::kRows, args.query_begin);
  Tile tile;
  tile.load_a(shared, place.rows<T>(args, args.q, args.query_end), place.first);

  LogSum sums[Tile::kRowsPerThread];
  const auto bias = [&](int key) { return key_bias(args, place.image, key); };
  const auto visit = [&](const float (&logits)[Tile::kRowsPerThread][Tile::kColumnsPerThread], int) {
    for (int r = 0; r < Tile::kRowsPerThread; ++r) {
      sums[r].add(logits[r]);
    }
  };
  sweep(tile, shared, place.rows<T>(args, args.k, args.tokens), 0, args.scale * kLog2E, bias, visit);

  for (int r = 0; r < Tile::kRowsPerThread; ++r) {
    for (int apart = 1; apart < Tile::kLanesPerRow; apart *= 2) {
      LogSum other;
      other.top = __shfl_xor_sync(0xFFFFFFFFU, sums[r].top, apart);
      other.total = __shfl_xor_sync(0xFFFFFFFFU, sums[r].total, apart);
      sums[r].add(other);
    }
    const int query = place.first + Tile::row(r);
    if (threadIdx.x % Tile::kLanesPerRow == 0 && query < args.query_end) {
      call.row_lse[place.offset(args) + query] = sums[r].natural_log();
    }
  }
}

// Pass 2. A block owns kRows keys of one (image, head) and walks the queries: the same product with Q and K exchanged.
template <class Tile>
__global__ void __launch_bounds__(kThreads, kBlocks) column_sum_kernel(Call call) {
  using T = typename Tile::Element;
  __shared__ typename Tile::Shared shared;
  const FopruColumnScoreArgs& args = call.args;
  const Place place(args, args.tokens, Tile::kRows, 0);
  Tile tile;
  tile.load_a(shared, place.rows<T>(args, args.k, args.tokens), place.first);

  float mask[Tile::kRowsPerThread];
  float sums[Tile::kRowsPerThread] = {};
  for (int r = 0; r < Tile::kRowsPerThread; ++r) {
    const int key = place.first + Tile::row(r);
    mask[r] = key < args.tokens ? key_bias(args, place.image, key) : 0.0F;
  }
  const float* lse = args.lse + place.image * args.lse_stride_image + place.head * args.lse_stride_head;
  const auto bias = [&](int query) {
    const float value = lse[query];
    return value == -INFINITY ? -INFINITY : -value * kLog2E;  // a query with no key left gives no mass
  };
  const auto visit = [&](const float (&logits)[Tile::kRowsPerThread][Tile::kColumnsPerThread], int) {
    for (int r = 0; r < Tile::kRowsPerThread; ++r) {
      float sum = 0.0F;  // per tile first: the error grows with tiles + columns, not with their product
      for (int c = 0; c < Tile::kColumnsPerThread; ++c) {
        sum += exp2f(logits[r][c] + mask[r]);
      }
      sums[r] += sum;
    }
  };
  sweep(tile, shared, place.rows<T>(args, args.q, args.query_end), args.query_begin, args.scale * kLog2E, bias, visit);

  for (int r = 0; r < Tile::kRowsPerThread; ++r) {
    for (int apart = 1; apart < Tile::kLanesPerRow; apart *= 2) {
      sums[r] += __shfl_xor_sync(0xFFFFFFFFU, sums[r], apart);
    }
    const int key = place.first + Tile::row(r);
    if (threadIdx.x % Tile::kLanesPerRow == 0 && key < args.tokens) {
      call.column_sums[place.offset(args) + key] = sums[r];
    }
  }
}

// Heads in order, one thread per score.
__global__ void __launch_bounds__(kThreads) head_mean_kernel(Call call) {
  const FopruColumnScoreArgs& args = call.args;
  const std::int64_t score = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (score >= static_cast<std::int64_t>(args.images) * args.tokens) {
    return;
  }
  const float* sums = call.column_sums + score / args.tokens * args.heads * args.tokens + score % args.tokens;
  float sum = 0.0F;
  for (int head = 0; head < args.heads; ++head) {
    sum += sums[static_cast<std::int64_t>(head) * args.tokens];
  }
  args.scores[score] = sum / (static_cast<float>(args.heads) * static_cast<float>(args.query_end - args.query_begin));
}

unsigned int blocks_for(std::int64_t rows, int rows_per_block) {
  return static_cast<unsigned int>((rows + rows_per_block - 1) / rows_per_block);
}

cudaError_t launch(void (*kernel)(Call), unsigned int blocks, Call call, cudaStream_t stream) {
  void* parameters[] = {&call};
  return cudaLaunchKernel(kernel, dim3(blocks), dim3(kThreads), parameters, 0, stream);
}

template <class Tile>
cudaError_t launch_passes(const Call& call, cudaStream_t stream) {
  const FopruColumnScoreArgs& args = call.args;
  const unsigned int pairs = static_cast<unsigned int>(args.images) * static_cast<unsigned int>(args.heads);
  if (call.row_lse != nullptr) {
    const unsigned int blocks = blocks_for(args.query_end - args.query_begin, Tile::kRows) * pairs;
    const cudaError_t error = launch(row_lse_kernel<Tile>, blocks, call, stream);
    if (error != cudaSuccess) {
      return error;
    }
  }
  const cudaError_t error = launch(column_sum_kernel<Tile>, blocks_for(args.tokens, Tile::kRows) * pairs, call, stream);
  if (error != cudaSuccess) {
    return error;
  }
  return launch(head_mean_kernel, blocks_for(static_cast<std::int64_t>(args.images) * args.tokens, kThreads), call, stream);
}

// head_dim is padded to the next depth that is compiled: 64 (CLIP), 80 (Qwen 80, SigLIP so400m 72), 96, 128.
template <template <int> class TileOf>
cudaError_t launch_depth(const Call& call, cudaStream_t stream) {
  if (call.args.head_dim <= 64) {
    return launch_passes<TileOf<64>>(call, stream);
  }
  if (call.args.head_dim <= 80) {
    return launch_passes<TileOf<80>>(call, stream);
  }
  if (call.args.head_dim <= 96) {
    return launch_passes<TileOf<96>>(call, stream);
  }
  return launch_passes<TileOf<128>>(call, stream);
}

template <int D>
using HalfTile = TensorTile<__half, D>;
template <int D>
using BrainTile = TensorTile<__nv_bfloat16, D>;

}  // namespace
}  // namespace fopru

extern "C" FopruStatus fopru_column_score(const FopruColumnScoreArgs* args, void* stream) {
  const FopruStatus status = fopru::check_column_score(args);
  if (status != FOPRU_OK) {
    return status;
  }
  float* workspace = static_cast<float*>(args->workspace);
  fopru::Call call{*args, nullptr, workspace};
  if (args->lse == nullptr) {
    call.args.lse_stride_head = args->tokens;
    call.args.lse_stride_image = static_cast<std::int64_t>(args->heads) * args->tokens;
    call.row_lse = workspace + args->images * call.args.lse_stride_image;
    call.args.lse = call.row_lse;
  }
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  switch (args->dtype) {
    case FOPRU_FLOAT16:
      error = fopru::launch_depth<fopru::HalfTile>(call, queue);
      break;
    case FOPRU_BFLOAT16:
      error = fopru::launch_depth<fopru::BrainTile>(call, queue);
      break;
    case FOPRU_FLOAT32:
      error = fopru::launch_depth<fopru::FloatTile>(call, queue);
      break;
  }
  return error == cudaSuccess ? FOPRU_OK : FOPRU_LAUNCH_FAILED;
}
