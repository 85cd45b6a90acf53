#include "column_score_reference.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "column_score_check.h"

namespace fopru {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

float from_bits(std::uint32_t bits) {
  float value = 0.0F;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

double from_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1F;
  const int fraction = bits & 0x3FF;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 0x1F) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

double element(const void* data, FopruDtype dtype, std::int64_t index) {
  if (dtype == FOPRU_FLOAT32) {
    return static_cast<const float*>(data)[index];
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[index];
  return dtype == FOPRU_FLOAT16 ? from_half(bits) : from_bits(static_cast<std::uint32_t>(bits) << 16);
}

// One head's Q or K as [tokens, head_dim] doubles.
void read_head(const FopruColumnScoreArgs& args, const FopruTokens& view, std::int64_t base, std::vector<double>& out) {
  for (std::int64_t token = 0; token < args.tokens; ++token) {
    for (std::int64_t d = 0; d < args.head_dim; ++d) {
      out[static_cast<std::size_t>(token * args.head_dim + d)] =
          element(view.data, args.dtype, base + token * view.stride_token + d);
    }
  }
}

// log(sum(exp(logits))); -inf where every key is removed, NaN where a logit is NaN.
double log_sum_exp(const std::vector<double>& logits) {
  double top = kNothing;
  for (const double logit : logits) {
    top = logit > top ? logit : top;
  }
  const double base = top == kNothing ? 0.0 : top;
  double sum = 0.0;
  for (const double logit : logits) {
    sum += std::exp(logit - base);
  }
  return base + std::log(sum);
}

struct Buffers {
  std::vector<double> q, k;     // [tokens, head_dim], one head
  std::vector<double> logits;   // [tokens], one query
  std::vector<double> columns;  // [tokens], one image, summed over heads and queries
};

void logits_of(const FopruColumnScoreArgs& args, const float* mask, std::size_t query, Buffers& b) {
  const std::size_t depth = static_cast<std::size_t>(args.head_dim);
  for (std::size_t j = 0; j < b.logits.size(); ++j) {
    double product = 0.0;
    for (std::size_t d = 0; d < depth; ++d) {
      product += b.q[query * depth + d] * b.k[j * depth + d];
    }
    const bool removed = mask != nullptr && mask[j] <= FOPRU_KEY_REMOVED;
    const double added = mask != nullptr ? mask[j] : 0.0;
    b.logits[j] = removed ? kNothing : product * args.scale + added;
  }
}

void score_image(const FopruColumnScoreArgs& args, std::int64_t image, Buffers& b) {
  b.columns.assign(b.columns.size(), 0.0);
  const float* mask = args.key_mask != nullptr ? args.key_mask + image * args.tokens : nullptr;
  for (std::int64_t head = 0; head < args.heads; ++head) {
    read_head(args, args.q, image * args.q.stride_image + head * args.q.stride_head, b.q);
    read_head(args, args.k, image * args.k.stride_image + head * args.k.stride_head, b.k);
    const std::int64_t lse_row = image * args.lse_stride_image + head * args.lse_stride_head;
    for (std::int32_t query = args.query_begin; query < args.query_end; ++query) {
      logits_of(args, mask, static_cast<std::size_t>(query), b);
      const double lse = args.lse != nullptr ? static_cast<double>(args.lse[lse_row + query]) : log_sum_exp(b.logits);
      if (lse == kNothing) {
        continue;  // every key removed: this query gives no mass
      }
      for (std::size_t j = 0; j < b.columns.size(); ++j) {
        b.columns[j] += std::exp(b.logits[j] - lse);
      }
    }
  }
  const double rows = static_cast<double>(args.heads) * (args.query_end - args.query_begin);
  for (std::size_t j = 0; j < b.columns.size(); ++j) {
    args.scores[image * args.tokens + static_cast<std::int64_t>(j)] = static_cast<float>(b.columns[j] / rows);
  }
}

}  // namespace
}  // namespace fopru

extern "C" FopruStatus fopru_column_score_reference(const FopruColumnScoreArgs* args, void* /*stream*/) {
  const FopruStatus status = fopru::check_column_score(args);
  if (status != FOPRU_OK) {
    return status;
  }
  try {
    const std::size_t tokens = static_cast<std::size_t>(args->tokens);
    const std::size_t values = tokens * static_cast<std::size_t>(args->head_dim);
    fopru::Buffers buffers{std::vector<double>(values), std::vector<double>(values), std::vector<double>(tokens),
                           std::vector<double>(tokens)};
    for (std::int64_t image = 0; image < args->images; ++image) {
      fopru::score_image(*args, image, buffers);
    }
  } catch (const std::bad_alloc&) {
    return FOPRU_OUT_OF_MEMORY;
  }
  return FOPRU_OK;
}
