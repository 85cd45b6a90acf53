#include "decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace fopru {

namespace {

// A nucleus is looked for among weights of at least this part of the largest, which is 1, before all are
// sorted: a vocabulary has 10^5 tokens and a nucleus mostly a few.
constexpr double likely_parts[] = {1e-2, 1e-4, 1e-8, 0.0};

// NumPy's order of adding up, so that a sum that decides is the same to the last bit.
double pairwise_sum(const double* values, std::size_t count) {
    if (count < 8) {
        double sum = 0.0;
        for (std::size_t i = 0; i < count; ++i) sum += values[i];
        return sum;
    }
    if (count <= 128) {
        double lanes[8];
        std::copy(values, values + 8, lanes);
        std::size_t i = 8;
        for (; i + 8 <= count; i += 8) {
            for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += values[i + lane];
        }
        double sum =
            ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
        for (; i < count; ++i) sum += values[i];
        return sum;
    }
    const std::size_t half = count / 2 - count / 2 % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}

// That compilers make vectors of. With half as many, GCC writes the steps out one by one instead, which takes
// four times as long.
constexpr std::size_t lanes = 32;

struct Most {
    float value;
    bool odd;  // a NaN is among them
};

Most most_of(const float* scores, std::size_t count) {
    float most[lanes];
    int odd[lanes] = {};
    std::fill(most, most + lanes, -std::numeric_limits<float>::infinity());
    std::size_t i = 0;
    // Two at a time, as one comparison tells whether either is a NaN.
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const float one = scores[i + lane], other = scores[i + lanes + lane];
            const float larger = one > other ? one : other;
            most[lane] = larger > most[lane] ? larger : most[lane];
            odd[lane] |= std::isunordered(one, other);
        }
    }
    Most all{most[0], odd[0] != 0};
    for (std::size_t lane = 1; lane < lanes; ++lane) {
        all.value = std::max(all.value, most[lane]);
        all.odd = all.odd || odd[lane] != 0;
    }
    for (; i < count; ++i) {
        all.value = scores[i] > all.value ? scores[i] : all.value;
        all.odd = all.odd || std::isnan(scores[i]);
    }
    return all;
}

// `take(place)` for each score of at least `least`, which `take` may raise. By blocks, as most have none.
template <typename Take>
void each_reaching(const float* scores, std::size_t count, const float& least, Take take) {
    for (std::size_t start = 0; start < count; start += lanes) {
        const std::size_t end = std::min(start + lanes, count);
        if (end - start == lanes) {
            const float limit = least;
            int any = 0;
            for (std::size_t lane = 0; lane < lanes; ++lane) any |= scores[start + lane] >= limit;
            if (any == 0) continue;
        }
        for (std::size_t i = start; i < end; ++i) {
            if (scores[i] >= least) take(i);
        }
    }
}

// The first of the largest; a NaN counts as larger than all. By blocks, so that one alone is looked through
// for the place.
std::size_t best_of(const float* scores, std::size_t count) {
    constexpr std::size_t block = 1024;
    std::size_t best = 0;
    float value = -std::numeric_limits<float>::infinity();
    for (std::size_t start = 0; start < count; start += block) {
        const std::size_t size = std::min(block, count - start);
        const float* own = scores + start;
        const Most most = most_of(own, size);
        if (most.odd) {
            return start +
                   static_cast<std::size_t>(
                       std::find_if(own, own + size, [](float score) { return std::isnan(score); }) - own);
        }
        if (most.value > value) {
            value = most.value;
            best = start + static_cast<std::size_t>(std::find(own, own + size, value) - own);
        }
    }
    return best;
}

}  // namespace

Sampler::Sampler(const Sampling& sampling, std::int64_t vocab_size,
                 const std::vector<std::int64_t>& prompt_ids)
    : sampling_(sampling), vocab_size_(static_cast<std::size_t>(vocab_size)), random_(sampling.seed) {
    if (vocab_size < 1 || vocab_size > std::numeric_limits<Id>::max()) {
        throw BackendError("a decoder with " + std::to_string(vocab_size) +
                           " logits cannot be sampled from: give 1 to " +
                           std::to_string(std::numeric_limits<Id>::max()));
    }
    if (sampling.repetition_penalty != 1.0) {
        penalised_.resize(vocab_size_);
        said_.resize(vocab_size_, 0);
        repeated_.reserve(vocab_size_);
        for (const std::int64_t id : prompt_ids) say(id);
    }
    if (sampling.temperature > 0.0) {
        ids_.resize(vocab_size_);
        order_.resize(vocab_size_);
        weights_.resize(vocab_size_);
        sums_.resize(vocab_size_);
    }
}

std::int64_t Sampler::pick(const float* logits) {
    const float* values = scores(logits);
    const std::size_t best = best_of(values, vocab_size_);
    if (!std::isfinite(values[best])) {
        throw BackendError(
            "the decoder gave logits that are not numbers: check the bundle with `fopru check`");
    }
    const std::size_t token = sampling_.temperature == 0.0 ? best : draw(values, values[best]);
    say(static_cast<std::int64_t>(token));
    return static_cast<std::int64_t>(token);
}

// Counts an id as repeated from now on, if it has a logit.
void Sampler::say(std::int64_t id) {
    const auto place = static_cast<std::size_t>(id);
    if (id < 0 || place >= said_.size() || said_[place]) return;
    said_[place] = 1;
    repeated_.push_back(static_cast<Id>(id));
}

// The logits, those of repeated tokens moved down: divided by the penalty, or multiplied below 0. In float32,
// as in transformers, so that greedy answers are the same.
const float* Sampler::scores(const float* logits) {
    if (said_.empty()) return logits;
    const auto penalty = static_cast<float>(sampling_.repetition_penalty);
    std::copy(logits, logits + vocab_size_, penalised_.begin());
    for (const Id id : repeated_) {
        float& value = penalised_[static_cast<std::size_t>(id)];
        value = value < 0 ? value * penalty : value / penalty;
    }
    return penalised_.data();
}

// Inverse of the cumulative distribution: one uniform number per token, so a seed gives the same text
// anywhere.
std::size_t Sampler::draw(const float* scores, double best) {
    const std::size_t count = candidates(scores, best);
    std::partial_sum(weights_.begin(), weights_.begin() + count, sums_.begin());
    // At most 1 - 2^-53 of the sum, which no rounding makes the sum: so never a token without a weight.
    const double target = random_.next_double() * sums_[count - 1];
    const auto end = sums_.begin() + count;
    const auto place = std::upper_bound(sums_.begin(), end, target);
    return static_cast<std::size_t>(ids_[place == end ? count - 1 : place - sums_.begin()]);
}

// Fills the first places of `ids_` and `weights_`; returns how many.
std::size_t Sampler::candidates(const float* scores, double best) {
    float least = 0.0F;
    std::size_t count = 0;
    if (eligible(scores, best, least)) {
        each_reaching(scores, vocab_size_, least, [&](std::size_t i) { ids_[count++] = static_cast<Id>(i); });
    } else {
        count = vocab_size_;
        std::iota(ids_.begin(), ids_.end(), Id{0});
    }
    // The difference first: a tiny temperature then makes -inf, whose weight is 0, and never inf - inf.
    for (std::size_t i = 0; i < count; ++i) {
        weights_[i] = std::exp((static_cast<double>(scores[ids_[i]]) - best) / sampling_.temperature);
    }
    if (sampling_.top_p < 1.0) count = nucleus(count);
    if (sampling_.min_p > 0.0) {
        count = likely(count, sampling_.min_p);
        reorder(count);
    }
    return count;
}

// The score below which no token is worth a weight, false where all are: it is the exponentials of 10^5
// tokens that cost.
bool Sampler::eligible(const float* scores, double best, float& least) {
    const auto top = static_cast<std::uint64_t>(sampling_.top_k);
    if (top > 0 && top < vocab_size_) {
        least = top_score(scores, static_cast<std::size_t>(top));
        return true;
    }
    if (sampling_.min_p > 0.0 && sampling_.top_p == 1.0) {
        // Not quite the limit, so that no rounding counts: those about it are compared by weight.
        const double limit = best + sampling_.temperature * (std::log(sampling_.min_p) - 1e-3);
        const double lowest = std::numeric_limits<float>::lowest();
        least = static_cast<float>(std::max(limit - 1e-6 * std::abs(limit), lowest));
        return true;
    }
    return false;
}

// The K-th largest score: every tie of it stays, as in transformers. The largest so far, the least of them in
// front, in the memory of the sums, which are not needed yet.
float Sampler::top_score(const float* scores, std::size_t top) {
    const auto begin = sums_.begin(), end = begin + static_cast<std::ptrdiff_t>(top);
    if (top > vocab_size_ / 16) {
        std::copy(scores, scores + vocab_size_, begin);
        std::nth_element(begin, end - 1, sums_.end(), std::greater<>());
        return static_cast<float>(*(end - 1));
    }
    std::copy(scores, scores + top, begin);
    std::make_heap(begin, end, std::greater<>());
    auto least = static_cast<float>(*begin);
    each_reaching(scores + top, vocab_size_ - top, least, [&](std::size_t i) {
        if (scores[top + i] == least) return;
        std::pop_heap(begin, end, std::greater<>());
        *(end - 1) = scores[top + i];
        std::push_heap(begin, end, std::greater<>());
        least = static_cast<float>(*begin);
    });
    return least;
}

// The smallest set of largest weights that has at least `top_p` of their sum, never empty; largest weight
// first, ties to the lower id.
std::size_t Sampler::nucleus(std::size_t count) {
    const double goal = sampling_.top_p * pairwise_sum(weights_.data(), count);
    std::size_t size = 0;
    for (const double part : likely_parts) {
        size = likely(count, part);
        // Not `stable_sort`, which allocates: the place decides ties.
        std::sort(order_.begin(), order_.begin() + size, [this](Id a, Id b) {
            return weights_[a] != weights_[b] ? weights_[a] > weights_[b] : a < b;
        });
        double sum = 0.0;
        for (std::size_t i = 0; i < size; ++i) sums_[i] = sum += weights_[order_[i]];
        if (sums_[size - 1] >= goal) break;
    }
    const auto reached = std::lower_bound(sums_.begin(), sums_.begin() + size, goal) - sums_.begin();
    size = std::min(size, static_cast<std::size_t>(reached) + 1);
    reorder(size);
    return size;
}

// Places of the candidates with at least this weight, ascending, in `order_`; returns how many.
std::size_t Sampler::likely(std::size_t count, double least) {
    std::size_t found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        order_[found] = static_cast<Id>(i);
        found += weights_[i] >= least ? 1 : 0;
    }
    return found;
}

// Makes the candidates those at the first `count` places of `order_`, in that order.
void Sampler::reorder(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums_[i] = weights_[order_[i]];
    std::copy(sums_.begin(), sums_.begin() + count, weights_.begin());
    for (std::size_t i = 0; i < count; ++i) order_[i] = ids_[order_[i]];
    std::copy(order_.begin(), order_.begin() + count, ids_.begin());
}

}  // namespace fopru
