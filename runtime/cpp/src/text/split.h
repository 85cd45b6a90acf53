// Cutting a text where a pattern matches.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "text/fields.h"
#include "text/pattern.h"
#include "text/piece.h"

namespace fopru {

// What happens to the matches: each a piece, left out, one with its neighbour, or runs of them one piece.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

// BundleError where `fields[key]` is none.
SplitBehavior behavior_from_json(const Fields& fields, std::string_view key);

// Spans as `Pattern::spans` gives them, with each character that is `wanted` a match.
Spans spans_of_characters(std::string_view text, const std::function<bool(std::uint32_t)>& wanted);

// The pieces of `piece` are put at the end of `out`, without empty ones.
void split(const Piece& piece, Spans spans, SplitBehavior behavior, Pieces& out);

// Every piece that is no added token through `part(piece, out)`.
void split_all(Pieces& pieces, const std::function<void(Piece&, Pieces&)>& part);

}  // namespace fopru
