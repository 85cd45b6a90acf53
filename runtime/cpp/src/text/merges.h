// The merges of a BPE model, and their application.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace fopru {

struct Merge {
    std::uint32_t rank, id;
};

// A flat table from pairs of ids to merges. Immutable once filled.
class Merges {
public:
    explicit Merges(std::size_t count);
    // A later merge of the same pair takes the place of an earlier one. At most `count` in all. False where
    // the pairs were made to collide: looking them up would take too long.
    [[nodiscard]] bool put(std::uint32_t left, std::uint32_t right, Merge merge);
    // Null where the pair is not merged.
    const Merge* find(std::uint32_t left, std::uint32_t right) const;

private:
    struct Slot {
        std::uint64_t pair;
        Merge merge;
    };
    std::optional<std::size_t> slot_of(std::uint64_t pair) const;

    std::vector<Slot> slots_;
    std::vector<bool> used_;
};

// Applies the merges to a word's symbols, lowest rank first and leftmost first among equals, n log n for n
// symbols.
void merge_all(const Merges& merges, std::vector<std::uint32_t>& symbols);

}  // namespace fopru
