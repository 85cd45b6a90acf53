// A bound on what the parts of a tokenizer.json make of a text. Each may make it several times longer, and a
// file may list any number of parts, one after the other.
#pragma once

#include <cstddef>

#include "text/piece.h"

namespace fopru {

constexpr std::size_t most_text_bytes = std::size_t{16} << 20;

// Both throw RequestError where there are more bytes than `most_text_bytes`.
void check_growth(std::size_t bytes);
std::size_t check_growth(const Pieces& pieces);  // all together; returns the bytes

}  // namespace fopru
