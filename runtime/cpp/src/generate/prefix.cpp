#include "generate/prefix.h"

#include <algorithm>

#include "base/error.h"

namespace fopru {

namespace {

// The first row that differs in id or position on any axis, `length` where none does.
std::int64_t first_difference(const PromptRows& one, const PromptRows& other, std::int64_t length) {
    const std::int64_t own = one.positions.length(), theirs = other.positions.length();
    for (std::int64_t row = 0; row < length; ++row) {
        if (one.ids[row] != other.ids[row]) return row;
        for (int axis = 0; axis < one.positions.axes; ++axis) {
            if (one.positions.ids[axis * own + row] != other.positions.ids[axis * theirs + row]) return row;
        }
    }
    return length;
}

}  // namespace

std::int64_t PromptRows::common(const PromptRows& other) const {
    if (positions.axes != other.positions.axes) return 0;
    std::int64_t length = static_cast<std::int64_t>(std::min(ids.size(), other.ids.size()));
    length = first_difference(*this, other, length);
    for (std::size_t i = 0; i < std::max(images.size(), other.images.size()); ++i) {
        const Image* own = i < images.size() ? &images[i] : nullptr;
        const Image* theirs = i < other.images.size() ? &other.images[i] : nullptr;
        if (own && theirs && own->first_row == theirs->first_row && own->digest == theirs->digest) continue;
        // A generated image token has the id of a visual token, and no image: so unequal lengths count.
        if (own) length = std::min(length, own->first_row);
        if (theirs) length = std::min(length, theirs->first_row);
        break;
    }
    return length;
}

void PromptRows::follow(const std::vector<std::int64_t>& tokens) {
    const auto old = positions.length(), added = static_cast<std::int64_t>(tokens.size());
    std::vector<std::int64_t> joined;
    joined.reserve(static_cast<std::size_t>(positions.axes * (old + added)));
    for (int axis = 0; axis < positions.axes; ++axis) {
        const auto start = positions.ids.begin() + axis * old;
        joined.insert(joined.end(), start, start + old);
        for (std::int64_t i = 0; i < added; ++i) joined.push_back(positions.next + i);
    }
    positions.ids = std::move(joined);
    positions.next += added;
    ids.insert(ids.end(), tokens.begin(), tokens.end());
}

PromptRows prompt_rows(const std::vector<std::int64_t>& ids, const Positions& positions,
                       const std::vector<SharedTokens>& images, std::int64_t image) {
    PromptRows rows{ids, positions, {}};
    std::size_t place = 0;
    for (const SharedTokens& tokens : images) {
        while (place < ids.size() && ids[place] != image) ++place;
        if (place == ids.size()) {
            throw RequestError(
                "the prompt has fewer image placeholders than visual tokens: make the ids with prompt");
        }
        rows.images.push_back({static_cast<std::int64_t>(place), tokens->digest});
        for (std::int64_t left = tokens->image.features.count; left > 0 && place < ids.size(); ++place) {
            if (ids[place] == image) --left;
        }
    }
    return rows;
}

}  // namespace fopru
