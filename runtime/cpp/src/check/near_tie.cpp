#include "check/near_tie.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/python_text.h"

namespace fopru {
namespace {

using Indices = std::vector<std::int64_t>;

struct Unit {
    Indices kept, got;
    std::vector<double> scores;  // of the reference
};

bool all_inside(const Indices& indices, std::size_t size) {
    return std::all_of(indices.begin(), indices.end(), [size](std::int64_t index) {
        return index >= 0 && static_cast<std::uint64_t>(index) < size;
    });
}

// Lengths that add up to `total` and are not negative.
bool adds_up(const Indices& lengths, std::size_t total) {
    std::size_t sum = 0;
    for (const std::int64_t length : lengths) {
        if (length < 0 || static_cast<std::uint64_t>(length) > total - sum) return false;
        sum += static_cast<std::size_t>(length);
    }
    return sum == total;
}

// The parts of each unit, none where they do not belong together.
std::optional<std::vector<Unit>> units_of(const Choices& choices) {
    const Tensor* counts = choices.reference.find("kept_counts");
    const Tensor* scores = choices.reference.find("token_scores");
    const Tensor* kept = choices.reference.find("kept_indices");
    const Tensor* got = choices.measured.find("kept_indices");
    if (counts == nullptr || scores == nullptr || kept == nullptr || got == nullptr) return std::nullopt;
    const Indices *lengths = counts->integers(), *wanted = kept->integers(), *found = got->integers();
    if (lengths == nullptr || wanted == nullptr || found == nullptr || kept->shape != got->shape)
        return std::nullopt;
    const Indices& tokens = choices.units.tokens;
    if (lengths->size() != tokens.size() || !adds_up(*lengths, wanted->size()) ||
        !adds_up(tokens, scores->size())) {
        return std::nullopt;
    }
    std::vector<Unit> units(tokens.size());
    std::size_t index = 0, score = 0;
    for (std::size_t number = 0; number < units.size(); ++number) {
        Unit& unit = units[number];
        const auto begin = static_cast<std::ptrdiff_t>(index), end = begin + (*lengths)[number];
        unit.kept.assign(wanted->begin() + begin, wanted->begin() + end);
        unit.got.assign(found->begin() + begin, found->begin() + end);
        index = static_cast<std::size_t>(end);
        for (std::int64_t i = 0; i < tokens[number]; ++i) unit.scores.push_back(scores->at(score++));
        if (!all_inside(unit.kept, unit.scores.size())) return std::nullopt;
    }
    return units;
}

// Whether positions are strictly increasing, and whole rows of so many columns.
bool is_choice(const Indices& kept, std::int64_t columns) {
    for (std::size_t i = 0; i < kept.size(); ++i) {
        const std::int64_t column = static_cast<std::int64_t>(i) % columns;
        if (i > 0 && kept[i] <= kept[i - 1]) return false;
        if (kept[i] % columns != column) return false;
        if (column > 0 && kept[i] != kept[i - 1] + 1) return false;
    }
    return static_cast<std::int64_t>(kept.size()) % columns == 0;
}

// Every token of a row gets the mean of the row; false where there are no full rows.
bool spread_rows(std::vector<double>& scores, std::int64_t columns) {
    const auto width = static_cast<std::size_t>(columns);
    if (scores.size() % width != 0) return false;
    for (std::size_t start = 0; start < scores.size(); start += width) {
        double sum = 0.0;
        for (std::size_t i = start; i < start + width; ++i) sum += scores[i];
        for (std::size_t i = start; i < start + width; ++i) scores[i] = sum / static_cast<double>(columns);
    }
    return true;
}

// Tokens that only one of the two keeps, where all of them tie with the boundary; none where one does not.
std::optional<Indices> tied_tokens(Unit& unit, std::int64_t columns) {
    if (columns < 1 || !is_choice(unit.got, columns)) return std::nullopt;
    if (columns > 1 && !spread_rows(unit.scores, columns)) return std::nullopt;
    if (unit.kept.empty() || !all_inside(unit.got, unit.scores.size())) return std::nullopt;
    double boundary = unit.scores[static_cast<std::size_t>(unit.kept.front())];
    for (const std::int64_t token : unit.kept)
        boundary = std::min(boundary, unit.scores[static_cast<std::size_t>(token)]);
    std::sort(unit.kept.begin(), unit.kept.end());
    unit.kept.erase(std::unique(unit.kept.begin(), unit.kept.end()), unit.kept.end());
    Indices swapped;
    std::set_symmetric_difference(unit.kept.begin(), unit.kept.end(), unit.got.begin(), unit.got.end(),
                                  std::back_inserter(swapped));
    if (swapped.empty()) return std::nullopt;
    for (const std::int64_t token : swapped) {
        const double away = std::fabs(unit.scores[static_cast<std::size_t>(token)] - boundary);
        if (!(away <= tie_window * std::fabs(boundary))) return std::nullopt;
    }
    return swapped;
}

double sum_of(const Indices& indices, const std::vector<double>& scores) {
    double sum = 0.0;
    for (const std::int64_t index : indices) sum += scores[static_cast<std::size_t>(index)];
    return sum;
}

}  // namespace

bool judge_tie(StageResult& result, const Choices& choices) {
    const Tensor* counts = choices.reference.find("kept_counts");
    const Tensor* same = choices.measured.find("kept_counts");
    if (counts == nullptr || same == nullptr || counts->shape != same->shape ||
        counts->values != same->values) {
        return false;
    }
    std::optional<std::vector<Unit>> units = units_of(choices);
    if (!units) return false;
    Indices tied;
    for (std::size_t number = 0; number < units->size(); ++number) {
        Unit& unit = (*units)[number];
        if (unit.kept == unit.got) continue;
        const auto& columns = choices.units.columns;
        const std::optional<Indices> swapped = tied_tokens(unit, columns ? (*columns)[number] : 1);
        if (!swapped) return false;
        tied.insert(tied.end(), swapped->begin(), swapped->end());
    }
    result.ok = true;
    result.detail = "near-tie: the scores of tokens " + python_repr(tied) + " are equal within " +
                    printed("%g", tie_window) + " of the boundary score";
    return true;
}

std::optional<double> chosen_fraction(const Choices& choices) {
    std::optional<std::vector<Unit>> units = units_of(choices);
    if (!units) return std::nullopt;
    double lost = 0.0, most = 0.0;
    for (Unit& unit : *units) {
        const bool finite =
            std::all_of(unit.scores.begin(), unit.scores.end(), [](double s) { return std::isfinite(s); });
        if (!finite || !all_inside(unit.got, unit.scores.size())) return std::nullopt;
        const double best = sum_of(unit.kept, unit.scores);
        lost += std::max(0.0, best - sum_of(unit.got, unit.scores));
        std::sort(unit.scores.begin(), unit.scores.end());
        double least = 0.0;
        for (std::size_t i = 0; i < unit.kept.size() && i < unit.scores.size(); ++i) least += unit.scores[i];
        most += best - least;
    }
    return most > 0 ? 1.0 - lost / most : 1.0;
}

}  // namespace fopru
