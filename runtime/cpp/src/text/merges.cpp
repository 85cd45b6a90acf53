#include "text/merges.h"

#include <algorithm>

namespace fopru {
namespace {

constexpr std::uint32_t none = 0xFFFFFFFF;
// As in vocabulary.cpp.
constexpr std::size_t most_steps = 1024;

struct Symbol {
    std::uint32_t id, previous, next;
    bool removed;
};

struct Candidate {
    std::uint32_t rank, place, id;
};

// A heap of std has its largest in front: the one that comes last in this order.
bool comes_later(const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.place > b.place;
}

}  // namespace

Merges::Merges(std::size_t count) {
    std::size_t slots = 16;
    while (slots < count * 2) slots *= 2;
    slots_.assign(slots, {});
    used_.assign(slots, false);
}

// Where the pair is, or the free slot where it would be. None where it would be too far from its place.
std::optional<std::size_t> Merges::slot_of(std::uint64_t pair) const {
    const std::size_t mask = slots_.size() - 1;
    std::uint64_t mixed = pair * 0x9E3779B97F4A7C15u;
    mixed ^= mixed >> 32;
    for (std::size_t step = 0; step < most_steps; ++step) {
        const std::size_t slot = (static_cast<std::size_t>(mixed) + step) & mask;
        if (!used_[slot] || slots_[slot].pair == pair) return slot;
    }
    return std::nullopt;
}

bool Merges::put(std::uint32_t left, std::uint32_t right, Merge merge) {
    const std::uint64_t pair = std::uint64_t{left} << 32 | right;
    const std::optional<std::size_t> slot = slot_of(pair);
    if (!slot) return false;
    slots_[*slot] = {pair, merge};
    used_[*slot] = true;
    return true;
}

const Merge* Merges::find(std::uint32_t left, std::uint32_t right) const {
    const std::optional<std::size_t> slot = slot_of(std::uint64_t{left} << 32 | right);
    return slot && used_[*slot] ? &slots_[*slot].merge : nullptr;
}

void merge_all(const Merges& merges, std::vector<std::uint32_t>& ids) {
    if (ids.size() < 2) return;
    const auto count = static_cast<std::uint32_t>(ids.size());
    std::vector<Symbol> symbols(count);
    std::vector<Candidate> heap;
    for (std::uint32_t i = 0; i < count; ++i) {
        symbols[i] = {ids[i], i == 0 ? none : i - 1, i + 1 == count ? none : i + 1, false};
        if (i + 1 == count) break;
        if (const Merge* merge = merges.find(ids[i], ids[i + 1])) heap.push_back({merge->rank, i, merge->id});
    }
    std::make_heap(heap.begin(), heap.end(), comes_later);

    const auto consider = [&](std::uint32_t place) {
        const Symbol& left = symbols[place];
        if (const Merge* merge = merges.find(left.id, symbols[left.next].id)) {
            heap.push_back({merge->rank, place, merge->id});
            std::push_heap(heap.begin(), heap.end(), comes_later);
        }
    };
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), comes_later);
        const Candidate top = heap.back();
        heap.pop_back();
        Symbol& left = symbols[top.place];
        if (left.removed || left.next == none) continue;
        Symbol& right = symbols[left.next];
        // The pair may have changed since. What counts is what it would become, as in the tokenizers library.
        const Merge* merge = merges.find(left.id, right.id);
        if (merge == nullptr || merge->id != top.id) continue;
        left.id = top.id;
        left.next = right.next;
        right.removed = true;
        if (right.next != none) symbols[right.next].previous = top.place;
        if (left.previous != none) consider(left.previous);
        if (left.next != none) consider(top.place);
    }
    ids.clear();
    for (const Symbol& symbol : symbols) {
        if (!symbol.removed) ids.push_back(symbol.id);
    }
}

}  // namespace fopru
