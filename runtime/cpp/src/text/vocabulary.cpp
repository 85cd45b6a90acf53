#include "text/vocabulary.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "text/fields.h"
#include "text/utf8.h"

namespace fopru {

namespace {

// Slots that are looked at for one text. In a table that is half empty, chance never needs a hundred; who
// makes texts that collide would otherwise make loading quadratic.
constexpr std::size_t most_steps = 1024;

}  // namespace

Vocabulary::Vocabulary(const Json& json, const std::string& path) {
    const Json::Object* members = json.object();
    if (members == nullptr) throw_damaged(path, "is no object");
    constexpr std::size_t most = std::numeric_limits<std::uint32_t>::max() / 4;
    std::size_t bytes = 0;
    for (const auto& member : *members) bytes += member.first.size();
    if (members->size() > most || bytes > most) throw_damaged(path, "is too large");

    texts_.reserve(bytes);
    entries_.reserve(members->size());
    for (const auto& [text, id] : *members) {
        if (!is_utf8(text)) throw_damaged(path, "holds a token that is not UTF-8");
        entries_.push_back({id_from_json(id, path + "[" + quoted(text) + "]"),
                            static_cast<std::uint32_t>(texts_.size()),
                            static_cast<std::uint32_t>(text.size())});
        texts_ += text;
    }
    const auto less = [](const Entry& a, const Entry& b) { return a.id < b.id; };
    std::sort(entries_.begin(), entries_.end(), less);
    const auto same = [](const Entry& a, const Entry& b) { return a.id == b.id; };
    const auto twice = std::adjacent_find(entries_.begin(), entries_.end(), same);
    if (twice != entries_.end()) throw_damaged(path, "has the id " + std::to_string(twice->id) + " twice");

    std::size_t slots = 16;
    while (slots < entries_.size() * 2) slots *= 2;
    slots_.assign(slots, 0);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const std::optional<std::size_t> slot = slot_of(text_of(entries_[i]));
        if (!slot) throw_damaged(path, "has texts that were made to be looked up slowly");
        slots_[*slot] = static_cast<std::uint32_t>(i + 1);
    }
}

// Where the text is, or the free slot where it would be. None where it would be too far from its place.
std::optional<std::size_t> Vocabulary::slot_of(std::string_view text) const {
    const std::size_t mask = slots_.size() - 1;
    const std::size_t first = std::hash<std::string_view>{}(text)&mask;
    for (std::size_t step = 0; step < most_steps; ++step) {
        const std::size_t slot = (first + step) & mask;
        if (slots_[slot] == 0 || text_of(entries_[slots_[slot] - 1]) == text) return slot;
    }
    return std::nullopt;
}

std::optional<std::uint32_t> Vocabulary::find(std::string_view text) const {
    const std::optional<std::size_t> slot = slot_of(text);
    if (!slot || slots_[*slot] == 0) return std::nullopt;
    return entries_[slots_[*slot] - 1].id;
}

std::optional<std::string_view> Vocabulary::text(std::uint32_t id) const {
    // Ids are 0, 1, 2, ... in nearly every file.
    if (id < entries_.size() && entries_[id].id == id) return text_of(entries_[id]);
    const auto found =
        std::lower_bound(entries_.begin(), entries_.end(), id,
                         [](const Entry& entry, std::uint32_t value) { return entry.id < value; });
    if (found == entries_.end() || found->id != id) return std::nullopt;
    return text_of(*found);
}

}  // namespace fopru
