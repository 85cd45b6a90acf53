// Token texts and ids, both ways.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace fopru {

// Immutable. The texts are in one buffer and found through one flat table, so that 150,000 tokens load in
// milliseconds and take little more memory than their letters.
class Vocabulary {
public:
    // An object of text: id. BundleError: damaged, an id twice, or texts that were made to collide.
    Vocabulary(const Json& json, const std::string& path);

    std::size_t size() const { return entries_.size(); }
    std::optional<std::uint32_t> find(std::string_view text) const;
    std::optional<std::string_view> text(std::uint32_t id) const;

private:
    struct Entry {
        std::uint32_t id, begin, bytes;
    };
    std::string_view text_of(const Entry& entry) const { return {texts_.data() + entry.begin, entry.bytes}; }
    std::optional<std::size_t> slot_of(std::string_view text) const;

    std::string texts_;
    std::vector<Entry> entries_;        // ascending ids
    std::vector<std::uint32_t> slots_;  // index of an entry + 1, 0 for none; a power of two of them
};

}  // namespace fopru
