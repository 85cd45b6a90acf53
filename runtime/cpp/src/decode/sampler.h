// The next token from the logits, the same token as runtime/sampling.py for the same seed.
#pragma once

#include <cstdint>
#include <vector>

#include "base/pcg64.h"
#include "generate/request.h"

namespace fopru {

// Of one answer. All scratch memory is made on construction, as far as the request needs it: 5 bytes per
// logit for a repetition penalty, 24 for draws, none for plain greedy. `pick` allocates nothing. Not for two
// threads at once.
class Sampler {
public:
    // `sampling` has been checked (`Request::check`). `prompt_ids` are what the repetition penalty takes for
    // said; ids of `vocab_size` and above have no logit and do not count.
    Sampler(const Sampling& sampling, std::int64_t vocab_size, const std::vector<std::int64_t>& prompt_ids);
    // Logits [V], which stay as they are; ties to the lower id. BackendError: a logit is NaN or plus
    // infinity, or all are minus infinity.
    std::int64_t pick(const float* logits);

private:
    using Id = std::int32_t;  // fits every vocabulary, in half the memory

    const float* scores(const float* logits);
    std::size_t draw(const float* scores, double best);
    std::size_t candidates(const float* scores, double best);
    void say(std::int64_t id);
    float top_score(const float* scores, std::size_t top);
    bool eligible(const float* scores, double best, float& least);
    std::size_t nucleus(std::size_t count);
    std::size_t likely(std::size_t count, double least);
    void reorder(std::size_t count);

    Sampling sampling_;
    std::size_t vocab_size_;
    Pcg64 random_;
    std::vector<float> penalised_;
    std::vector<std::uint8_t> said_;  // by id
    std::vector<Id> repeated_;        // those said
    // Of the candidates: `ids_` and their `weights_`, as parts of the best one's. `order_` are places among
    // them.
    std::vector<Id> ids_, order_;
    std::vector<double> weights_, sums_;
};

}  // namespace fopru
