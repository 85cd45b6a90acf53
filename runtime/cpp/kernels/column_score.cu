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
#pragma unroll
    for (int i = 0; i < N; ++i) {
      new_top = fmaxf(new_top, logits[i]);
    }
    const float base = new_top == -INFINITY ? 0.0F : new_top;  // -inf - -inf would be NaN
    float sum = 0.0F;
#pragma unroll
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
__global__ void __launch_bounds__(kThreads, Tile::kBlocks) row_lse_kernel(Call call) {
  using T = typename Tile::Element;
  __shared__ typename Tile::Shared shared;
  const FopruColumnScoreArgs& args = call.args;
  const Place place(args, args.query_end - args.query_begin, Tile::kRows, args.query_begin);
  Tile tile;
  tile.load_a(shared, place.rows<T>(args, args.q, args.query_end), place.first);

  LogSum sums[Tile::kSlots];
  const auto bias = [&](int key) { return key_bias(args, place.image, key); };
  const auto visit = [&](const float (&logits)[Tile::kSlots][Tile::kPerSlot]) {
#pragma unroll
    for (int slot = 0; slot < Tile::kSlots; ++slot) {
      sums[slot].add(logits[slot]);
    }
  };
  const Rows<T> keys = place.rows<T>(args, args.k, args.tokens);
  sweep(tile, shared, keys, 0, args.scale * kLog2E, args.key_mask != nullptr, bias, visit);

  float tops[Tile::kSlots];
  float totals[Tile::kSlots];
#pragma unroll
  for (int slot = 0; slot < Tile::kSlots; ++slot) {
    tops[slot] = sums[slot].top;
    totals[slot] = sums[slot].total;
  }
  Tile::put(shared, 0, tops);
  Tile::put(shared, 1, totals);
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < Tile::kRows && place.first + row < args.query_end) {
    LogSum sum;
    for (int i = 0; i < kSlotsPerRow; ++i) {
      sum.add(LogSum{shared.slots[0][row][i], shared.slots[1][row][i]});
    }
    call.row_lse[place.offset(args) + place.first + row] = sum.natural_log();
  }
}

// Pass 2. A block owns kRows keys of one (image, head) and walks the queries: the same product with Q and K exchanged.
template <class Tile>
__global__ void __launch_bounds__(kThreads, Tile::kBlocks) column_sum_kernel(Call call) {
  using T = typename Tile::Element;
  __shared__ typename Tile::Shared shared;
  const FopruColumnScoreArgs& args = call.args;
  const Place place(args, args.tokens, Tile::kRows, 0);
  const int row = static_cast<int>(threadIdx.x);
  const bool owns = row < Tile::kRows && place.first + row < args.tokens;

  float mask[Tile::kSlots] = {};
  if (args.key_mask != nullptr) {
    if (row < Tile::kRows) {
      const float value = owns ? key_bias(args, place.image, place.first + row) : 0.0F;
      for (int i = 0; i < kSlotsPerRow; ++i) {
        shared.slots[0][row][i] = value;
      }
    }
    __syncthreads();
    Tile::take(shared, 0, mask);
    __syncthreads();
  }
  Tile tile;
  tile.load_a(shared, place.rows<T>(args, args.k, args.tokens), place.first);

  float sums[Tile::kSlots] = {};
  const float* lse = args.lse + place.image * args.lse_stride_image + place.head * args.lse_stride_head;
  const auto bias = [&](int query) {
    const float value = lse[query];
    return value == -INFINITY ? -INFINITY : -value * kLog2E;  // a query with no key left gives no mass
  };
  const auto visit = [&](const float (&logits)[Tile::kSlots][Tile::kPerSlot]) {
#pragma unroll
    for (int slot = 0; slot < Tile::kSlots; ++slot) {
      float sum = 0.0F;
#pragma unroll
      for (int c = 0; c < Tile::kPerSlot; ++c) {
        sum += exp2f(logits[slot][c] + mask[slot]);
      }
      sums[slot] += sum;
    }
  };
  const Rows<T> queries = place.rows<T>(args, args.q, args.query_end);
  sweep(tile, shared, queries, args.query_begin, args.scale * kLog2E, true, bias, visit);

  Tile::put(shared, 0, sums);
  __syncthreads();
  if (owns) {
    float sum = 0.0F;
    for (int i = 0; i < kSlotsPerRow; ++i) {
      sum += shared.slots[0][row][i];
    }
    call.column_sums[place.offset(args) + place.first + row] = sum;
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

// Pass 1 takes four logits a slot at a time, because each visit costs an exponential to move the maximum; pass 2 takes two,
// which leaves registers for more blocks.
template <class T, int D, int Parts>
struct TileFor {
  using Type = TensorTile<T, D, Parts>;
};
template <int D, int Parts>
struct TileFor<float, D, Parts> {
  using Type = FloatTile<D>;
};

template <class T, int D>
cudaError_t launch_passes(const Call& call, cudaStream_t stream) {
  using RowTile = typename TileFor<T, D, 4>::Type;
  using ColumnTile = typename TileFor<T, D, 2>::Type;
  const FopruColumnScoreArgs& args = call.args;
  const unsigned int pairs = static_cast<unsigned int>(args.images) * static_cast<unsigned int>(args.heads);
  if (call.row_lse != nullptr) {
    const unsigned int blocks = blocks_for(args.query_end - args.query_begin, RowTile::kRows) * pairs;
    const cudaError_t error = launch(row_lse_kernel<RowTile>, blocks, call, stream);
    if (error != cudaSuccess) {
      return error;
    }
  }
  const unsigned int blocks = blocks_for(args.tokens, ColumnTile::kRows) * pairs;
  const cudaError_t error = launch(column_sum_kernel<ColumnTile>, blocks, call, stream);
  if (error != cudaSuccess) {
    return error;
  }
  return launch(head_mean_kernel, blocks_for(static_cast<std::int64_t>(args.images) * args.tokens, kThreads), call, stream);
}

// head_dim is padded to the next depth that is compiled: 64 (CLIP), 80 (Qwen 80, SigLIP so400m 72), 96, 128.
template <class T>
cudaError_t launch_depth(const Call& call, cudaStream_t stream) {
  if (call.args.head_dim <= 64) {
    return launch_passes<T, 64>(call, stream);
  }
  if (call.args.head_dim <= 80) {
    return launch_passes<T, 80>(call, stream);
  }
  if (call.args.head_dim <= 96) {
    return launch_passes<T, 96>(call, stream);
  }
  return launch_passes<T, 128>(call, stream);
}

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
      error = fopru::launch_depth<__half>(call, queue);
      break;
    case FOPRU_BFLOAT16:
      error = fopru::launch_depth<__nv_bfloat16>(call, queue);
      break;
    case FOPRU_FLOAT32:
      error = fopru::launch_depth<float>(call, queue);
      break;
  }
  return error == cudaSuccess ? FOPRU_OK : FOPRU_LAUNCH_FAILED;
}
