#include "decode/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "allocation_count.h"
#include "base/error.h"

using namespace fopru;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

// No two logits alike, in no order.
std::vector<float> spread(std::size_t count) {
    std::vector<float> logits(count);
    for (std::size_t i = 0; i < count; ++i)
        logits[i] = std::fmod(static_cast<float>(i) * 0.618034F, 1.0F) * 12 - 6;
    return logits;
}

Sampling drawn(double temperature) {
    Sampling sampling;
    sampling.temperature = temperature;
    sampling.seed = 7;
    return sampling;
}

}  // namespace

TEST_CASE("greedy takes the largest, ties to the lower id") {
    Sampler sampler({}, 4, {});
    const float logits[] = {-inf, 2.0F, 2.0F, 1.0F};
    CHECK(sampler.pick(logits) == 1);
    CHECK(sampler.pick(logits) == 1);
}

TEST_CASE("logits that are not numbers are refused") {
    const std::string words =
        "the decoder gave logits that are not numbers: check the bundle with `fopru check`";
    for (const double temperature : {0.0, 1.0}) {
        Sampler sampler(drawn(temperature), 2, {});
        for (const float bad : {std::nanf(""), inf}) {
            const float logits[] = {0.0F, bad};
            CHECK_THROWS_WITH_AS(sampler.pick(logits), words.c_str(), BackendError);
        }
        const float none[] = {-inf, -inf};
        CHECK_THROWS_WITH_AS(sampler.pick(none), words.c_str(), BackendError);
    }
}

TEST_CASE("one NaN at any place is seen, and the largest is found at any") {
    // Blocks, lanes of blocks, and what is left over.
    for (const std::size_t size : {1, 31, 63, 64, 65, 1024, 1100, 2500}) {
        Sampler sampler({}, static_cast<std::int64_t>(size), {});
        std::vector<float> logits(size, -1.0F);
        for (std::size_t place = 0; place < size; ++place) {
            logits[place] = 2.0F;
            REQUIRE(sampler.pick(logits.data()) == static_cast<std::int64_t>(place));
            // One behind it, larger than all.
            const std::size_t behind = size - 1 - place;
            const float kept = logits[behind];
            logits[behind] = std::nanf("");
            REQUIRE_THROWS_AS(sampler.pick(logits.data()), BackendError);
            logits[behind] = -std::nanf("");
            REQUIRE_THROWS_AS(sampler.pick(logits.data()), BackendError);
            logits[behind] = inf;
            REQUIRE_THROWS_AS(sampler.pick(logits.data()), BackendError);
            logits[behind] = kept;
            logits[place] = -1.0F;
        }
    }
}

TEST_CASE("ties go to the lower id wherever they are") {
    constexpr std::size_t size = 2500;
    Sampler sampler({}, size, {});
    for (std::size_t place = 0; place + 1 < size; place += 7) {
        for (const std::size_t distance : {1, 16, 31, 32, 33, 64, 1000, 1024}) {
            std::vector<float> logits(size, -inf);
            logits[place] = 0.0F;
            if (place + distance < size) logits[place + distance] = place % 2 == 0 ? 0.0F : -0.0F;
            REQUIRE(sampler.pick(logits.data()) == static_cast<std::int64_t>(place));
        }
    }
}

TEST_CASE("a repetition penalty divides what is positive and multiplies what is negative") {
    Sampling sampling;
    sampling.repetition_penalty = 2.0;
    Sampler sampler(sampling, 3, {0, 900, -1});  // ids without a logit do not count
    const float logits[] = {3.0F, 1.6F, -1.0F};
    CHECK(sampler.pick(logits) == 1);  // 1.5, 1.6, -1
    CHECK(sampler.pick(logits) == 0);  // 1.5, 0.8, -1
    const float negative[] = {-1.0F, -1.5F, -1.8F};
    CHECK(sampler.pick(negative) == 2);  // -2, -3, -1.8
    CHECK(sampler.pick(negative) == 0);  // -2, -3, -3.6
}

TEST_CASE("a draw stays among its candidates") {
    const auto logits = spread(1000);
    Sampling sampling = drawn(1.5);
    sampling.top_k = 5;
    Sampler top(sampling, 1000, {});
    for (int i = 0; i < 200; ++i) CHECK(logits[static_cast<std::size_t>(top.pick(logits.data()))] > 5.9F);
    sampling.top_k = 0;
    sampling.top_p = 1e-9;
    Sampler best(sampling, 1000, {});
    sampling.top_p = 1.0;
    sampling.min_p = 1.0;
    Sampler likeliest(sampling, 1000, {});
    Sampler greedy({}, 1000, {});
    CHECK(best.pick(logits.data()) == greedy.pick(logits.data()));
    CHECK(likeliest.pick(logits.data()) == greedy.pick(logits.data()));
}

TEST_CASE("a vocabulary without logits is refused") {
    CHECK_THROWS_AS(Sampler({}, 0, {}), BackendError);
    CHECK_THROWS_AS(Sampler({}, std::int64_t{1} << 40, {}), BackendError);
}

TEST_CASE("pick allocates nothing") {
    constexpr std::size_t vocabulary = 20000;
    const auto logits = spread(vocabulary);
    for (const double temperature : {0.0, 0.01, 1.0, 50.0}) {
        for (const std::int64_t top_k : {0, 1, 40, 10000}) {
            for (const double top_p : {1.0, 0.9999, 0.5}) {
                for (const double min_p : {0.0, 0.1}) {
                    Sampling sampling = drawn(temperature);
                    sampling.top_k = top_k;
                    sampling.top_p = top_p;
                    sampling.min_p = min_p;
                    sampling.repetition_penalty = 1.1;
                    Sampler sampler(sampling, vocabulary, {1, 2, 3});
                    const std::size_t before = tests::allocations();
                    for (int i = 0; i < 3; ++i) sampler.pick(logits.data());
                    CHECK(tests::allocations() == before);
                }
            }
        }
    }
}
