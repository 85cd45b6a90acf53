#include <algorithm>
#include <set>

#include "base/error.h"
#include "pruning/pruning.h"

namespace fopru {

namespace {

// Whether each row of all units' outputs stays, prefix rows first in each.
std::vector<bool> rows_that_stay(const ImagePlan& plan, const std::vector<std::vector<std::int64_t>>& kept,
                                 std::int64_t prefix) {
    if (kept.size() != plan.units.size()) {
        throw RequestError("got kept tokens of " + std::to_string(kept.size()) +
                           " parts for an image that is seen in " + std::to_string(plan.units.size()) +
                           ": give those of every part");
    }
    std::vector<bool> stays;
    for (std::size_t index = 0; index < kept.size(); ++index) {
        const std::int64_t tokens = plan.units[index].tokens;
        const std::size_t start = stays.size();
        stays.resize(start + static_cast<std::size_t>(prefix), true);
        stays.resize(start + static_cast<std::size_t>(prefix + tokens), false);
        for (const auto place : kept[index]) {
            if (place < 0 || place >= tokens) {
                throw RequestError("token " + std::to_string(place) +
                                   " is to be kept, but this part of the image has " +
                                   std::to_string(tokens) + ": give 0.." + std::to_string(tokens - 1));
            }
            stays[start + static_cast<std::size_t>(prefix + place)] = true;
        }
    }
    return stays;
}

// Numbers of the lines of which a token stays.
std::set<std::int64_t> filled_lines(const ImagePlan& plan, const std::vector<bool>& stays) {
    std::set<std::int64_t> lines;
    for (std::size_t at = 0; at < plan.sequence.size(); ++at) {
        const std::int64_t row = plan.sequence[at];
        if (row != newline_row && stays[static_cast<std::size_t>(row)]) lines.insert(plan.lines->at(at));
    }
    return lines;
}

}  // namespace

Assembly assemble(const ImagePlan& plan, const std::vector<std::vector<std::int64_t>>& kept,
                  int prefix_tokens, const std::string& newline) {
    const auto stays = rows_that_stay(plan, kept, prefix_tokens);
    std::vector<std::int64_t> row_of(stays.size());
    std::int64_t rows = 0;
    for (std::size_t row = 0; row < stays.size(); ++row) row_of[row] = stays[row] ? rows++ : rows - 1;
    const bool nonempty = newline == "keep_nonempty" && plan.lines;
    const auto filled = nonempty ? filled_lines(plan, stays) : std::set<std::int64_t>();
    Assembly assembly;
    std::size_t at = 0;
    for (const auto run : plan.runs) {
        const std::size_t before = assembly.places.size();
        for (const std::size_t end = at + static_cast<std::size_t>(run); at < end; ++at) {
            const std::int64_t row = plan.sequence[at];
            const bool keep = row != newline_row ? stays[static_cast<std::size_t>(row)]
                              : nonempty         ? filled.count((*plan.lines)[at]) > 0
                                                 : newline != "drop";
            if (!keep) continue;
            assembly.places.push_back(static_cast<std::int64_t>(at));
            assembly.source.push_back(row == newline_row ? newline_row
                                                         : row_of[static_cast<std::size_t>(row)]);
        }
        assembly.runs.push_back(static_cast<std::int64_t>(assembly.places.size() - before));
    }
    return assembly;
}

}  // namespace fopru
