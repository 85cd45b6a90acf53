#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/pcg64.h"
#include "base/python_text.h"
#include "layout/geometry.h"
#include "pruning/pruning.h"
#include "pruning/ranking.h"
#include "text/utf8.h"

namespace fopru {

namespace {

using Indices = std::vector<std::int64_t>;

Indices every_token(const Choice& choice) {
    if (choice.keep != choice.tokens) {
        throw RequestError("selector \"none\" keeps all " + std::to_string(choice.tokens) + " tokens, not " +
                           std::to_string(choice.keep) + ": drop ratio and tokens");
    }
    return counted(choice.keep);
}

Indices by_rank(const Choice& choice) {
    return best_places({choice.scores, choice.scores + choice.tokens}, choice.keep);
}

Indices by_row(const Choice& choice) {
    if (!choice.grid) {
        throw RequestError(
            "selector \"row\" needs a full grid of tokens, which this model lacks: use \"rank\"");
    }
    const std::int64_t rows = choice.grid->first, columns = choice.grid->second;
    if (rows < 1 || columns < 1 || rows * columns != choice.tokens) {
        throw RequestError("selector \"row\" got " + std::to_string(choice.tokens) +
                           " tokens for a grid of " + std::to_string(rows) + " x " + std::to_string(columns) +
                           ": give those of one unit");
    }
    if (choice.keep % columns != 0) {
        throw RequestError("selector \"row\" keeps whole rows of " + std::to_string(columns) +
                           " tokens, not " + std::to_string(choice.keep) + ": give a multiple");
    }
    std::vector<float> means;
    for (std::int64_t row = 0; row < rows; ++row)
        means.push_back(mean_of(choice.scores + row * columns, columns));
    Indices indices;
    for (const auto row : best_places(means, choice.keep / columns)) {
        for (std::int64_t column = 0; column < columns; ++column) indices.push_back(row * columns + column);
    }
    return indices;
}

// The first K of `np.random.default_rng(seed).permutation(N)`.
Indices at_random(const Choice& choice) {
    Pcg64 random(choice.seed);
    Indices order = counted(choice.tokens);
    for (std::size_t last = order.size() - 1; last > 0; --last)
        std::swap(order[last], order[random.bounded(last)]);
    order.resize(static_cast<std::size_t>(choice.keep));
    std::sort(order.begin(), order.end());
    return order;
}

// The middle of each of K equal stretches.
Indices evenly(const Choice& choice) {
    Indices indices;
    for (std::int64_t step = 0; step < choice.keep; ++step) {
        indices.push_back((2 * step + 1) * choice.tokens / (2 * choice.keep));
    }
    return indices;
}

struct Selector {
    const char* name;
    Indices (*select)(const Choice& choice);
};

constexpr Selector selectors[] = {
    {"none", every_token}, {"rank", by_rank}, {"row", by_row}, {"random", at_random}, {"uniform", evenly}};

}  // namespace

const std::vector<std::string>& host_selectors() {
    static const std::vector<std::string> names = {"rank", "row", "random", "uniform"};
    return names;
}

void check_selector(const std::string& selector) {
    std::vector<std::string> allowed = {"graph", "none"};
    for (const std::string& name : host_selectors()) allowed.push_back(name);
    for (const std::string& name : allowed) {
        if (selector == name) return;
    }
    throw RequestError("selector is \"" + utf8_lossy(selector) + "\", expected one of " + joined(allowed));
}

bool needs_scores(const std::string& selector) { return selector == "rank" || selector == "row"; }

std::vector<std::int64_t> select_tokens(const std::string& selector, const Choice& choice) {
    const auto* found = std::find_if(std::begin(selectors), std::end(selectors),
                                     [&](const Selector& own) { return selector == own.name; });
    if (found == std::end(selectors)) {
        throw RequestError("selector is \"" + selector +
                           "\", expected one of none, rank, row, random, uniform");
    }
    const auto total = std::to_string(choice.tokens);
    if (choice.keep < 1 || choice.keep > choice.tokens) {
        throw RequestError("cannot keep " + std::to_string(choice.keep) + " tokens: the image has " + total +
                           ", give 1.." + total);
    }
    if (!std::all_of(choice.scores, choice.scores + choice.tokens,
                     [](float score) { return std::isfinite(score); })) {
        throw BackendError(
            "the vision encoder gave a token score that is not finite: check the image and the bundle");
    }
    return found->select(choice);
}

}  // namespace fopru
