#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "pruning/pruning.h"

namespace fopru {

namespace {

using UnitCounts = std::vector<std::int64_t>;

std::int64_t sum(const UnitCounts& counts) {
    return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

Grid full_grid(const Unit& unit) {
    const auto grid = unit.valid_grid();
    if (!grid) {
        throw RequestError(
            "selector \"row\" needs a full grid of tokens, which this model lacks: use \"rank\"");
    }
    return *grid;
}

std::int64_t by_ratio(const Unit& unit, double ratio, bool rows) {
    if (unit.prunable() == 0) return 0;
    if (!rows) return kept_count(unit.prunable(), ratio);
    const auto [down, across] = full_grid(unit);
    return across * kept_count(down, ratio);
}

// A budget is shared out evenly; the overview gets what is left.
UnitCounts shares_of(const ImagePlan& plan, std::int64_t tokens) {
    std::vector<std::size_t> filled;
    for (std::size_t index = 0; index < plan.units.size(); ++index) {
        if (plan.units[index].prunable() > 0) filled.push_back(index);
    }
    const std::int64_t total = plan.prunable(), parts = static_cast<std::int64_t>(filled.size());
    const std::string got = "tokens is " + std::to_string(tokens);
    if (tokens < 1 || tokens > total) {
        throw RequestError(got + ", but an image has " + std::to_string(total) + ": give 1.." +
                           std::to_string(total));
    }
    if (tokens < parts) {
        throw RequestError(got + ", but the image is seen in " + std::to_string(parts) +
                           " parts, each of which keeps at least one: give " + std::to_string(parts) + ".." +
                           std::to_string(total));
    }
    UnitCounts shares(plan.units.size(), 0);
    for (const auto index : filled) shares[index] = std::min(tokens / parts, plan.units[index].prunable());
    std::int64_t left = tokens - sum(shares);
    const auto main = plan.overview ? static_cast<std::size_t>(*plan.overview) : filled[0];
    filled.insert(filled.begin(), main);
    for (const auto index : filled) {  // what the overview cannot hold goes to the others
        const std::int64_t more = std::min(plan.units[index].prunable() - shares[index], left);
        shares[index] += more;
        left -= more;
    }
    return shares;
}

std::int64_t whole_rows(const Unit& unit, std::int64_t share, std::int64_t tokens) {
    if (unit.prunable() == 0) return 0;
    const std::int64_t columns = full_grid(unit).second;
    if (share < columns) {
        const bool all = share == tokens;
        throw RequestError(
            "tokens is " + std::to_string(tokens) +
            (all ? "" : ", and a part of the image gets " + std::to_string(share) + " of them") +
            ", but strategy \"row\" keeps whole rows of " + std::to_string(columns) + ": give " +
            (all ? std::to_string(columns) + ".." + std::to_string(unit.prunable()) : "more"));
    }
    return std::min(share, unit.prunable()) / columns * columns;
}

Counts everything(const std::vector<const ImagePlan*>& plans) {
    Counts counts;
    for (const auto* plan : plans) {
        counts.emplace_back();
        for (const auto& unit : plan->units) counts.back().push_back(unit.prunable());
    }
    return counts;
}

std::int64_t total_of(const Counts& counts) {
    std::int64_t total = 0;
    for (const auto& own : counts) total += sum(own);
    return total;
}

}  // namespace

UnitCounts unit_counts(const ImagePlan& plan, const Amount& amount, bool rows) {
    UnitCounts counts;
    if (amount.tokens) {
        counts = shares_of(plan, *amount.tokens);
        if (!rows) return counts;
        for (std::size_t index = 0; index < counts.size(); ++index) {
            counts[index] = whole_rows(plan.units[index], counts[index], *amount.tokens);
        }
        return counts;
    }
    for (const auto& unit : plan.units) counts.push_back(by_ratio(unit, amount.ratio.value_or(1.0), rows));
    return counts;
}

UnitCounts stitched_counts(const ImagePlan& plan, const Amount& amount) {
    if (!plan.mosaic || !plan.overview) return unit_counts(plan, amount, true);
    const auto main = static_cast<std::size_t>(*plan.overview);
    const Unit& overview = plan.units[main];
    const Grid grid = stitched_grid(plan);
    const Unit tiles{std::int64_t{grid.first} * grid.second, grid, std::nullopt};
    if (!amount.tokens) {
        const double ratio = amount.ratio.value_or(1.0);
        return {by_ratio(overview, ratio, true), by_ratio(tiles, ratio, true)};
    }
    const std::int64_t share = shares_of(plan, *amount.tokens)[main];
    return {whole_rows(overview, share, *amount.tokens),
            whole_rows(tiles, *amount.tokens - share, *amount.tokens)};
}

PruningPlan plan_pruning(const Amount& asked, const std::string& selector, const Manifest& manifest,
                         const std::vector<const ImagePlan*>& plans) {
    if (plans.empty()) return {{}, false, "the prompt has no image"};
    const Counts all = everything(plans);
    if (selector == "none") return {all, false, "selector \"none\" keeps every token"};
    const PruningInfo& pruning = manifest.pruning;
    const bool is_default = asked.everything();
    const Amount amount = is_default ? Amount{pruning.default_ratio, pruning.default_tokens} : asked;
    if (amount.everything()) return {all, false, "neither the request nor the bundle gives a ratio"};
    const bool stitched = stitched_rows(selector, pruning);
    const bool rows = (selector == "graph" ? pruning.strategy : selector) == "row";
    Counts counts;
    for (const auto* plan : plans) {
        // What a request asks for is refused where an image has less; a default is all that a small image
        // has.
        Amount own = amount;
        if (is_default && own.tokens) own = {std::nullopt, std::min(*own.tokens, plan->prunable())};
        counts.push_back(stitched ? stitched_counts(*plan, own) : unit_counts(*plan, own, rows));
    }
    if (total_of(counts) < total_of(all)) return {counts, true, std::nullopt};
    return {counts, false, amount.text() + " keeps every token"};
}

bool stitched_rows(const std::string& selector, const PruningInfo& pruning) {
    return pruning.row_scope == "stitched" && (selector == "graph" || selector == "row");
}

std::string newline_policy(const ImagePlan& plan, std::int64_t kept, const PruningInfo& pruning) {
    return kept < plan.prunable() ? pruning.newline : "keep_all";
}

std::int64_t kept_placeholders(const ImagePlan& plan, std::int64_t kept, std::int64_t prefix,
                               const std::string& newline) {
    const auto newlines =
        newline == "drop" ? 0 : std::count(plan.sequence.begin(), plan.sequence.end(), newline_row);
    return prefix * static_cast<std::int64_t>(plan.units.size()) + kept + newlines;
}

}  // namespace fopru
