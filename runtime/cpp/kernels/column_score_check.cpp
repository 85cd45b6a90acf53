#include "column_score_check.h"

#include <cmath>
#include <initializer_list>

namespace fopru {
namespace {

constexpr std::int64_t kMostRows = (std::int64_t{1} << 31) - 1;  // rows are counted, and blocks launched, in 32 bits
constexpr std::size_t kAlignment = 16;                           // the kernels copy 16 bytes at a time

bool aligned(const void* pointer, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0; }

bool counts_allowed(std::int64_t images, std::int64_t heads, std::int64_t tokens) {
  // divisions, because the product of three 32-bit counts may leave 64 bits
  return images > 0 && heads > 0 && tokens > 0 && images <= kMostRows / heads / tokens;
}

bool strides_allowed(const FopruTokens& view, std::int64_t step) {
  for (const std::int64_t stride : {view.stride_image, view.stride_head, view.stride_token}) {
    if (stride < 0 || stride % step != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

FopruStatus check_column_score(const FopruColumnScoreArgs* args) {
  if (args == nullptr) {
    return FOPRU_NULL_POINTER;
  }
  if (args->struct_bytes != sizeof(FopruColumnScoreArgs)) {
    return FOPRU_STRUCT_MISMATCH;  // before anything else: the other fields may lie elsewhere
  }
  if (args->q.data == nullptr || args->k.data == nullptr || args->scores == nullptr || args->workspace == nullptr) {
    return FOPRU_NULL_POINTER;
  }
  if (args->dtype != FOPRU_FLOAT32 && args->dtype != FOPRU_FLOAT16 && args->dtype != FOPRU_BFLOAT16) {
    return FOPRU_BAD_DTYPE;
  }
  if (!counts_allowed(args->images, args->heads, args->tokens)) {
    return FOPRU_BAD_SHAPE;
  }
  if (args->head_dim <= 0 || args->head_dim > 128 || args->head_dim % 8 != 0) {
    return FOPRU_BAD_HEAD_DIM;
  }
  if (args->query_begin < 0 || args->query_begin >= args->query_end || args->query_end > args->tokens) {
    return FOPRU_BAD_QUERY_RANGE;
  }
  if (!std::isfinite(args->scale)) {
    return FOPRU_BAD_SCALE;
  }
  const std::int64_t step = args->dtype == FOPRU_FLOAT32 ? 4 : 8;
  const bool lse_strides = args->lse == nullptr || (args->lse_stride_image >= 0 && args->lse_stride_head >= 0);
  if (!strides_allowed(args->q, step) || !strides_allowed(args->k, step) || !lse_strides) {
    return FOPRU_BAD_STRIDE;
  }
  if (!aligned(args->q.data, kAlignment) || !aligned(args->k.data, kAlignment) || !aligned(args->workspace, kAlignment) ||
      !aligned(args->scores, sizeof(float)) || !aligned(args->key_mask, sizeof(float)) || !aligned(args->lse, sizeof(float))) {
    return FOPRU_MISALIGNED;
  }
  const std::size_t needed =
      fopru_column_score_workspace_bytes(args->images, args->heads, args->tokens, args->lse == nullptr ? 0 : 1);
  if (args->workspace_bytes < needed) {
    return FOPRU_WORKSPACE_TOO_SMALL;
  }
  return FOPRU_OK;
}

}  // namespace fopru

extern "C" {

std::size_t fopru_column_score_workspace_bytes(std::int32_t images, std::int32_t heads, std::int32_t tokens,
                                               std::int32_t lse_given) {
  if (!fopru::counts_allowed(images, heads, tokens)) {
    return 0;
  }
  const std::size_t rows =
      static_cast<std::size_t>(images) * static_cast<std::size_t>(heads) * static_cast<std::size_t>(tokens);
  return sizeof(float) * rows * (lse_given != 0 ? 1 : 2);
}

const char* fopru_column_score_status_string(FopruStatus status) {
  switch (status) {
    case FOPRU_OK:
      return "ok";
    case FOPRU_NULL_POINTER:
      return "args, q.data, k.data, scores or workspace is null; only key_mask, lse and stream may be";
    case FOPRU_STRUCT_MISMATCH:
      return "struct_bytes is not sizeof(FopruColumnScoreArgs): caller and library were built with different headers";
    case FOPRU_BAD_DTYPE:
      return "dtype is none of FOPRU_FLOAT32, FOPRU_FLOAT16, FOPRU_BFLOAT16";
    case FOPRU_BAD_SHAPE:
      return "images, heads and tokens must be at least 1 and their product below 2^31: split the images over several calls";
    case FOPRU_BAD_HEAD_DIM:
      return "head_dim must be a multiple of 8 from 8 to 128: pad q and k with zeros and keep the scale of the original";
    case FOPRU_BAD_QUERY_RANGE:
      return "the query range must satisfy 0 <= query_begin < query_end <= tokens";
    case FOPRU_BAD_SCALE:
      return "scale must be finite";
    case FOPRU_BAD_STRIDE:
      return "strides must not be negative, and those of q and k must be multiples of 16 bytes";
    case FOPRU_MISALIGNED:
      return "q, k and workspace must be aligned to 16 bytes; key_mask, lse and scores to 4";
    case FOPRU_WORKSPACE_TOO_SMALL:
      return "workspace_bytes is less than fopru_column_score_workspace_bytes asks for";
    case FOPRU_LAUNCH_FAILED:
      return "the driver refused a kernel; cudaGetLastError says why, often a device the library was not compiled for";
    case FOPRU_OUT_OF_MEMORY:
      return "the reference could not allocate host memory for one head";
  }
  return "unknown status";
}

}  // extern "C"
