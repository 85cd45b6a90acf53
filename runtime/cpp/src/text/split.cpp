#include "text/split.h"

#include <algorithm>
#include <utility>

#include "text/utf8.h"

namespace fopru {
namespace {

// Neighbours become one span: a match with the one before it where that is none (`previous`), or runs of
// equal kind.
Spans merged(const Spans& spans, bool runs) {
    Spans result;
    bool match_before = false;
    for (const Span& span : spans) {
        const bool joins = runs ? span.match == match_before : span.match && !match_before;
        if (joins && !result.empty()) {
            result.back().begin = std::min(result.back().begin, span.begin);
            result.back().end = std::max(result.back().end, span.end);
        } else {
            result.push_back({span.begin, span.end, false});
        }
        match_before = span.match;
    }
    return result;
}

}  // namespace

SplitBehavior behavior_from_json(const Fields& fields, std::string_view key) {
    const std::string& name = fields.text(key);
    if (name == "Removed") return SplitBehavior::removed;
    if (name == "Isolated") return SplitBehavior::isolated;
    if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
    if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
    if (name == "Contiguous") return SplitBehavior::contiguous;
    throw_damaged(fields.path_of(key),
                  "is " + quoted(name) +
                      ", expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

Spans spans_of_characters(std::string_view text, const std::function<bool(std::uint32_t)>& wanted) {
    Spans spans;
    std::size_t covered = 0;
    for (std::size_t place = 0; place < text.size();) {
        const CodePoint point = code_point_at(text, place);
        const std::size_t next = place + point.bytes;
        if (wanted(point.value)) {
            if (covered < place) spans.push_back({covered, place, false});
            spans.push_back({place, next, true});
            covered = next;
        }
        place = next;
    }
    if (covered < text.size()) spans.push_back({covered, text.size(), false});
    return spans;
}

void split(const Piece& piece, Spans spans, SplitBehavior behavior, Pieces& out) {
    switch (behavior) {
        case SplitBehavior::removed:
        case SplitBehavior::isolated: break;
        case SplitBehavior::contiguous: spans = merged(spans, true); break;
        case SplitBehavior::merged_with_previous: spans = merged(spans, false); break;
        case SplitBehavior::merged_with_next:
            std::reverse(spans.begin(), spans.end());
            spans = merged(spans, false);
            std::reverse(spans.begin(), spans.end());
            break;
    }
    for (const Span& span : spans) {
        if (span.begin == span.end || (behavior == SplitBehavior::removed && span.match)) continue;
        out.push_back(piece.slice(span.begin, span.end));
    }
}

void split_all(Pieces& pieces, const std::function<void(Piece&, Pieces&)>& part) {
    Pieces out;
    out.reserve(pieces.size());
    for (Piece& piece : pieces) {
        if (piece.token) {
            out.push_back(std::move(piece));
        } else {
            part(piece, out);
        }
    }
    pieces = std::move(out);
}

}  // namespace fopru
