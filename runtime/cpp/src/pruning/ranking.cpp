#include "pruning/ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fopru {

namespace {

constexpr std::int64_t block = 128;

// NumPy's pairwise sum: halves, down to blocks of eight sums side by side.
float pairwise_sum(const float* values, std::int64_t count) {
    if (count < 8) {
        float sum = -0.0F;
        for (std::int64_t i = 0; i < count; ++i) sum += values[i];
        return sum;
    }
    if (count > block) {
        std::int64_t half = count / 2;
        half -= half % 8;
        return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
    }
    float sums[8];
    std::copy(values, values + 8, sums);
    std::int64_t i = 8;
    for (; i < count - count % 8; i += 8) {
        for (std::int64_t lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane];
    }
    float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    for (; i < count; ++i) sum += values[i];
    return sum;
}

}  // namespace

float mean_of(const float* values, std::int64_t count) {
    return static_cast<float>(static_cast<double>(pairwise_sum(values, count)) / static_cast<double>(count));
}

std::vector<std::int64_t> best_places(const std::vector<float>& values, std::int64_t count) {
    std::vector<std::int64_t> places(values.size());
    std::iota(places.begin(), places.end(), std::int64_t{0});
    const auto value = [&](std::int64_t place) { return values[static_cast<std::size_t>(place)]; };
    std::stable_sort(places.begin(), places.end(), [&](std::int64_t a, std::int64_t b) {
        return value(a) > value(b) || (std::isnan(value(b)) && !std::isnan(value(a)));
    });
    places.resize(std::min(places.size(), static_cast<std::size_t>(std::max<std::int64_t>(count, 0))));
    std::sort(places.begin(), places.end());
    return places;
}

}  // namespace fopru
