// The tiles of an image as one grid: rows that run through all tiles side by side.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/layout.h"

namespace fopru {

// Number of the token, counted through all units, at each place of the stitched picture.
struct Stitched {
    std::int64_t rows = 0, columns = 0;
    std::vector<std::int64_t> places;  // [rows, columns]
};

// Of a plan with a mosaic and an overview. Tiles of padding alone add nothing; of a sliver nothing may be
// left.
Stitched stitch(const ImagePlan& plan);

}  // namespace fopru
