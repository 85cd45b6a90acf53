// Runs the kernels on exactly sized heap buffers and compares them with the reference, under all four schedules. Built with
// AddressSanitizer and UndefinedBehaviorSanitizer this sees every access outside a tensor; without, a missing barrier. Ends
// with 0, or with 1 and a line that names the case.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "column_score.h"
#include "column_score_reference.h"
#include "controls.h"

namespace {

struct Case {
  FopruDtype dtype;
  int images, heads, tokens, head_dim, query_begin, query_end;
  bool packed, masked, lse;
};

constexpr Case kCases[] = {
    {FOPRU_FLOAT16, 2, 2, 145, 64, 0, 145, true, false, false},  // several tiles, odd end, packed QKV
    {FOPRU_FLOAT16, 1, 2, 130, 72, 1, 130, false, true, false},  // padded depth, patches only, key mask
    {FOPRU_BFLOAT16, 1, 1, 197, 80, 0, 197, true, true, true},   // the caller's log-sum-exp
    {FOPRU_FLOAT16, 1, 1, 129, 88, 64, 128, false, false, false},
    {FOPRU_BFLOAT16, 2, 1, 100, 128, 0, 1, false, true, false},  // one query: cls
    {FOPRU_FLOAT32, 2, 2, 145, 64, 0, 145, true, false, false},
    {FOPRU_FLOAT32, 1, 1, 130, 72, 1, 130, false, true, true},
    {FOPRU_FLOAT32, 1, 1, 97, 96, 0, 97, false, false, false},
    {FOPRU_FLOAT32, 1, 1, 65, 128, 0, 65, true, false, false},
    {FOPRU_FLOAT32, 1, 1, 1, 8, 0, 1, false, false, false},  // the smallest there is
};

// 16-byte aligned, not one byte longer than asked for, so that the sanitizer sees the end.
struct Buffer {
  explicit Buffer(std::size_t count) : bytes(count), data(::operator new(count, std::align_val_t{16})) {
    std::memset(data, 0xFF, count);  // NaN wherever nothing is written
  }
  ~Buffer() { ::operator delete(data, std::align_val_t{16}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::size_t bytes;
  void* data;
};

float random_value(std::uint32_t& state) {
  state = state * 1664525U + 1013904223U;
  return static_cast<float>(state >> 8) / 8388608.0F - 1.0F;
}

// In [-1, 1), exact in every dtype: multiples of 1/64.
void write(void* data, FopruDtype dtype, std::size_t index, float value) {
  const float rounded = std::floor(value * 64.0F) / 64.0F;
  std::uint32_t bits = 0;
  std::memcpy(&bits, &rounded, sizeof(bits));
  if (dtype == FOPRU_FLOAT32) {
    static_cast<float*>(data)[index] = rounded;
  } else if (dtype == FOPRU_BFLOAT16) {
    static_cast<std::uint16_t*>(data)[index] = static_cast<std::uint16_t>(bits >> 16);
  } else {
    const std::uint32_t half = rounded == 0.0F ? 0 : ((bits >> 13) & 0x3FFU) | ((((bits >> 23) & 0xFFU) - 112U) << 10);
    static_cast<std::uint16_t*>(data)[index] = static_cast<std::uint16_t>((bits >> 16 & 0x8000U) | half);
  }
}

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

bool run(const Case& c, int number) {
  const std::size_t element = c.dtype == FOPRU_FLOAT32 ? 4 : 2;
  const std::int64_t width = static_cast<std::int64_t>(c.heads) * c.head_dim;
  const std::int64_t parts = c.packed ? 3 : 2;  // [images, tokens, (q, k, v) or (q, k), heads, head_dim]
  // v of the last token is never touched, so the buffer may end before it
  const std::int64_t values = c.images * c.tokens * parts * width - (c.packed ? width : 0);
  Buffer qkv(size(values) * element);
  std::uint32_t state = 12345;
  for (std::int64_t i = 0; i < values; ++i) {
    write(qkv.data, c.dtype, size(i), random_value(state));
  }
  Buffer mask(sizeof(float) * size(c.images * c.tokens));
  for (std::int64_t i = 0; i < c.images * c.tokens; ++i) {
    static_cast<float*>(mask.data)[i] = i % 7 == 3 ? -INFINITY : 0.25F * random_value(state);
  }
  const std::int64_t rows = static_cast<std::int64_t>(c.images) * c.heads * c.tokens;
  Buffer lse(sizeof(float) * size(rows));
  for (std::int64_t i = 0; i < rows; ++i) {
    static_cast<float*>(lse.data)[i] = 5.0F + random_value(state);
  }
  Buffer workspace(fopru_column_score_workspace_bytes(c.images, c.heads, c.tokens, c.lse ? 1 : 0));
  Buffer expected(sizeof(float) * size(c.images * c.tokens));

  FopruColumnScoreArgs args;
  args.dtype = c.dtype;
  args.images = c.images;
  args.heads = c.heads;
  args.tokens = c.tokens;
  args.head_dim = c.head_dim;
  args.query_begin = c.query_begin;
  args.query_end = c.query_end;
  args.scale = 0.5F;
  args.q = {qkv.data, c.tokens * parts * width, c.head_dim, parts * width};
  args.k = args.q;
  args.k.data = static_cast<char*>(qkv.data) + size(width) * element;
  args.key_mask = c.masked ? static_cast<float*>(mask.data) : nullptr;
  args.lse = c.lse ? static_cast<float*>(lse.data) : nullptr;
  args.lse_stride_head = c.tokens;
  args.lse_stride_image = static_cast<std::int64_t>(c.heads) * c.tokens;
  args.workspace = workspace.data;
  args.workspace_bytes = workspace.bytes;
  args.scores = static_cast<float*>(expected.data);
  if (fopru_column_score_reference(&args, nullptr) != FOPRU_OK) {
    std::printf("case %d: the reference refuses\n", number);
    return false;
  }
  std::vector<float> first;
  for (int schedule = 0; schedule < 4; ++schedule) {
    Buffer scores(expected.bytes);
    args.scores = static_cast<float*>(scores.data);
    cuda_on_cpu_schedule(schedule);
    const FopruStatus status = fopru_column_score(&args, nullptr);
    const std::vector<float> got(args.scores, args.scores + c.images * c.tokens);
    float worst = 0.0F;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const float want = static_cast<float*>(expected.data)[i];
      const float difference = std::fabs(got[i] - want) / (want + 1.0F / static_cast<float>(c.tokens));
      worst = difference <= worst ? worst : difference;  // NaN becomes the worst
    }
    // float32 sums of at most 200 terms: some 1e-6 of a score
    if (status != FOPRU_OK || !(worst < 1e-5F)) {
      std::printf("case %d, schedule %d: status %d, difference %g of a score\n", number, schedule, status, worst);
      return false;
    }
    if (schedule == 0) {
      first = got;
    } else if (std::memcmp(first.data(), got.data(), expected.bytes) != 0) {
      std::printf("case %d: schedules 0 and %d differ, a barrier is missing\n", number, schedule);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  int number = 0;
  for (const Case& c : kCases) {
    if (!run(c, number++)) {
      return 1;
    }
  }
  std::printf("%d cases\n", number);
  return 0;
}
