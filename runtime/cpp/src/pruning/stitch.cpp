#include "pruning/stitch.h"

#include <algorithm>

#include "base/error.h"
#include "pruning/pruning.h"
#include "pruning/ranking.h"

namespace fopru {

namespace {

struct Tile {
    std::vector<std::int64_t> places;  // counted through all units
    Grid grid;
};

std::vector<Tile> tiles_of(const ImagePlan& plan) {
    std::vector<Tile> tiles;
    std::int64_t start = 0;
    for (std::size_t index = 0; index < plan.units.size(); ++index) {
        const Unit& unit = plan.units[index];
        if (static_cast<int>(index) != *plan.overview) {
            Tile tile{unit.valid_indices(), unit.valid_grid().value_or(Grid{0, 0})};
            for (auto& place : tile.places) place += start;
            tiles.push_back(std::move(tile));
        }
        start += unit.tokens;
    }
    return tiles;
}

}  // namespace

Stitched stitch(const ImagePlan& plan) {
    if (!plan.mosaic || !plan.overview) {
        throw RequestError(
            "an image without tiles has no rows through all of them: make its plan with a layout of tiles");
    }
    const auto tiles = tiles_of(plan);
    const auto [down, across] = *plan.mosaic;
    Stitched whole;
    for (int band = 0; band < down; ++band) {
        std::vector<const Tile*> side_by_side;
        for (int column = 0; column < across; ++column) {
            const auto index = static_cast<std::size_t>(band) * static_cast<std::size_t>(across) +
                               static_cast<std::size_t>(column);
            if (index < tiles.size() && !tiles[index].places.empty()) side_by_side.push_back(&tiles[index]);
        }
        if (side_by_side.empty()) continue;
        const int rows = side_by_side[0]->grid.first;
        for (int row = 0; row < rows; ++row) {
            for (const Tile* tile : side_by_side) {
                const auto width = static_cast<std::ptrdiff_t>(tile->grid.second);
                const auto from = tile->places.begin() + row * width;
                whole.places.insert(whole.places.end(), from, from + width);
            }
        }
        whole.rows += rows;
    }
    if (whole.rows > 0) whole.columns = static_cast<std::int64_t>(whole.places.size()) / whole.rows;
    return whole;
}

Grid stitched_grid(const ImagePlan& plan) {
    const auto whole = stitch(plan);
    return {static_cast<int>(whole.rows), static_cast<int>(whole.columns)};
}

std::vector<std::vector<std::int64_t>> stitched_rows_kept(const ImagePlan& plan,
                                                          const std::vector<std::vector<float>>& scores,
                                                          std::int64_t keep) {
    const auto whole = stitch(plan);
    std::vector<std::vector<std::int64_t>> kept(plan.units.size());
    if (whole.places.empty()) return kept;
    std::vector<float> flat, means;
    for (const auto& own : scores) flat.insert(flat.end(), own.begin(), own.end());
    std::vector<float> row(static_cast<std::size_t>(whole.columns));
    for (std::int64_t at = 0; at < whole.rows; ++at) {
        for (std::int64_t i = 0; i < whole.columns; ++i) {
            const auto place =
                static_cast<std::size_t>(whole.places[static_cast<std::size_t>(at * whole.columns + i)]);
            row[static_cast<std::size_t>(i)] = flat.at(place);
        }
        means.push_back(mean_of(row.data(), whole.columns));
    }
    std::vector<std::int64_t> chosen;
    for (const auto at : best_places(means, keep / whole.columns)) {
        const auto from = whole.places.begin() + static_cast<std::ptrdiff_t>(at * whole.columns);
        chosen.insert(chosen.end(), from, from + static_cast<std::ptrdiff_t>(whole.columns));
    }
    std::sort(chosen.begin(), chosen.end());
    std::size_t next = 0;
    std::int64_t start = 0;
    for (std::size_t index = 0; index < plan.units.size(); ++index) {
        const std::int64_t end = start + plan.units[index].tokens;
        for (; next < chosen.size() && chosen[next] < end; ++next)
            kept[index].push_back(chosen[next] - start);
        start = end;
    }
    return kept;
}

}  // namespace fopru
