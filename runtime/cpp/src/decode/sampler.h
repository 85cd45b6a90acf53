// The next token from the logits, the same token as runtime/sampling.py for the same seed.
#pragma once

#include <cstdint>
#include <vector>

#include "generate/request.h"

namespace fopru {

// NumPy's default generator, `np.random.default_rng(seed).random()`: PCG64 seeded by SeedSequence.
class Pcg64 {
public:
    explicit Pcg64(std::uint64_t seed);
    double next();  // [0, 1), 53 bits

private:
    std::uint64_t state_[2], increment_[2];
};

// Of one answer. All scratch memory is made on construction: `pick` allocates nothing. Not for two threads at once.
class Sampler {
public:
    Sampler(const Sampling& sampling, std::int64_t vocab_size, const std::vector<std::int64_t>& prompt_ids);
    // Logits [V], which stay as they are; ties to the lower id. BackendError: a logit is no number.
    std::int64_t pick(const float* logits);

private:
    const float* scores(const float* logits);
    std::int64_t draw(const float* scores, double best);
    Sampling sampling_;
    std::int64_t vocab_size_;
    Pcg64 random_;
    std::vector<float> penalised_, work_;
    std::vector<bool> said_;
    std::vector<std::int64_t> repeated_, ids_, order_;
    std::vector<double> weights_, sums_;
};

}  // namespace fopru
