// Column means of softmax(Q K^T * scale) over heads and queries: how much attention each token receives.
//
// For H heads, T tokens and the queries i in [query_begin, query_end):
//
//     scores[image][j] = 1 / (H * queries) * sum_h sum_i softmax_j(scale * q_h[i] . k_h[j] + key_mask[j])
//
// col_mean is [0, T), col_mean_patch is [special tokens, T), cls is [0, 1). Column sums over all j are 1; the caller drops
// the columns of special tokens. The T x T matrix is never held: pass 1 finds the log-sum-exp of each row (or takes the
// caller's, for instance the one flash attention returns), pass 2 adds exp(logit - log-sum-exp) down each column. Memory is
// O(images * heads * T); products, exponentials and sums are float32 whatever the inputs are.
//
// Deterministic: a block owns a range of columns of one (image, head) and walks the queries in order, then heads are added
// in order. No atomics. Equal inputs give equal bits on the same device and build.
//
// Plain C types and linkage, so that a plugin, the C++ runtime and ctypes can call it. C++17. Nothing here throws.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum FopruDtype : std::int32_t {
  FOPRU_FLOAT32 = 0,
  FOPRU_FLOAT16 = 1,
  FOPRU_BFLOAT16 = 2,
};

enum FopruStatus : std::int32_t {
  FOPRU_OK = 0,
  FOPRU_NULL_POINTER = 1,
  FOPRU_STRUCT_MISMATCH = 2,
  FOPRU_BAD_DTYPE = 3,
  FOPRU_BAD_SHAPE = 4,
  FOPRU_BAD_HEAD_DIM = 5,
  FOPRU_BAD_QUERY_RANGE = 6,
  FOPRU_BAD_SCALE = 7,
  FOPRU_BAD_STRIDE = 8,
  FOPRU_MISALIGNED = 9,
  FOPRU_WORKSPACE_TOO_SMALL = 10,
  FOPRU_LAUNCH_FAILED = 11,
  FOPRU_OUT_OF_MEMORY = 12,
};

// Q or K: [images, heads, tokens, head_dim], read only, never copied. Strides are in elements, so every usual layout is a view:
//
//     layout                              stride_image    stride_head   stride_token
//     BHND                                H * T * D       T * D         D
//     BNHD                                T * H * D       D             H * D
//     packed QKV [B, T, 3, H, D]          T * 3 * H * D   D             3 * H * D      (K starts H * D after Q)
//
// head_dim is contiguous. `data` is 16-byte aligned and each stride a multiple of 16 bytes (4 float32, 8 float16 or
// bfloat16), none negative. stride_head 0 in K is multi-query attention: one K for all heads.
struct FopruTokens {
  const void* data = nullptr;
  std::int64_t stride_image = 0;
  std::int64_t stride_head = 0;
  std::int64_t stride_token = 0;
};

// One call. Pointers belong to the caller, are device memory for fopru_column_score and host memory for the reference, and
// must stay valid until the stream has passed the call. Outputs overlap no input.
struct FopruColumnScoreArgs {
  std::uint32_t struct_bytes = sizeof(FopruColumnScoreArgs);  // guards against a caller built with another header
  FopruDtype dtype = FOPRU_FLOAT32;                           // of Q and K; everything else is float32
  std::int32_t images = 0;                                    // >= 1; images * heads * tokens < 2^31
  std::int32_t heads = 0;                                     // >= 1
  std::int32_t tokens = 0;                                    // T, special tokens included
  std::int32_t head_dim = 0;                                  // a multiple of 8 up to 128; the kernels pad to 64, 80, 96 or 128
  std::int32_t query_begin = 0;                               // first query that counts
  std::int32_t query_end = 0;                                 // one past the last; 0 <= begin < end <= tokens
  float scale = 0.0F;                                         // finite, usually original head_dim ^ -0.5

  FopruTokens q;
  FopruTokens k;

  // [images, tokens] contiguous, added to the logits of a key, or null. A value of FOPRU_KEY_REMOVED or less removes the key:
  // no mass, score 0. With every key removed all scores of that image are 0. Masked tokens still count as queries.
  const float* key_mask = nullptr;

  // [images, heads, tokens], or null to compute it: natural log-sum-exp of scale * q . k + key_mask, token stride 1, other
  // strides in elements. Only the rows of the query range are read.
  const float* lse = nullptr;
  std::int64_t lse_stride_image = 0;
  std::int64_t lse_stride_head = 0;

  float* scores = nullptr;  // [images, tokens] contiguous, written whole. NaN in a row of Q or K becomes NaN here

  void* workspace = nullptr;  // 16-byte aligned, owned by this call until it has run; contents need no initialisation
  std::size_t workspace_bytes = 0;
};

// At or below this a key_mask value means "no such key": -inf and the lowest float32 do. The lowest float16, -65504, is a number
// like any other: no mass beside an unmasked key, but a softmax of its own where every key has it, as in any framework.
constexpr float FOPRU_KEY_REMOVED = -1.0e30F;

// Bytes of workspace: 4 * images * heads * tokens for the column sums per head, and as much again for the log-sum-exp unless
// the caller gives it. 0 where the counts are not positive or too large. Grows with each count: size once for the largest.
std::size_t fopru_column_score_workspace_bytes(std::int32_t images, std::int32_t heads, std::int32_t tokens,
                                               std::int32_t lse_given);

// Queues the kernels on `stream` (a cudaStream_t; null is the default stream) of the current device and returns. Allocates
// nothing and never synchronises, so it may be captured into a graph. Arguments are checked first: any status but FOPRU_OK
// and FOPRU_LAUNCH_FAILED means that nothing was queued. FOPRU_LAUNCH_FAILED is the driver's refusal, for instance of a
// device that the library was not compiled for; cudaGetLastError has its reason. float16 and bfloat16 need compute capability
// 8.0. Calls share no state: any number may run at once on different streams, each with its own workspace and scores.
FopruStatus fopru_column_score(const FopruColumnScoreArgs* args, void* stream);

// One sentence for a status: what was wrong, what is allowed. Static storage, never null.
const char* fopru_column_score_status_string(FopruStatus status);

}  // extern "C"
