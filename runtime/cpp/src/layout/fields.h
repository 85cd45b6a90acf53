// Members of a layout's object, read with the checks and words of bundle/decode.h. Integers are at most 32
// bits wide there (Python takes 64), so that a product of two of them, and every quotient, is exact here.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/python_text.h"
#include "bundle/decode.h"

namespace fopru {

using Pair = std::array<std::int64_t, 2>;    // (rows, columns) or (height, width)
using Levels = std::array<std::int64_t, 3>;  // RGB

// {"height": 1, "width": 2} and the like, in the order of the text.
struct Sizes {
    std::vector<std::pair<std::string, std::int64_t>> entries;

    const std::int64_t* find(const std::string& name) const;                // null where there is none
    std::int64_t at(const std::string& name) const { return *find(name); }  // of a name that was checked
    std::int64_t smallest() const;                                          // of at least one
    // Exactly these names, in any order.
    bool has_exactly(const std::vector<std::string>& names) const;
    std::string text() const;  // as Python writes the dict
};

// `out` must outlive the field.
Field whole_field(const char* name, std::int64_t& out, bool required = true);
Field whole_field(const char* name, std::optional<std::int64_t>& out);
Field pair_field(const char* name, Pair& out);
Field pair_field(const char* name, std::optional<Pair>& out);
Field pairs_field(const char* name, std::vector<Pair>& out);
Field colour_field(const char* name, std::optional<Levels>& out);
Field sizes_field(const char* name, Sizes& out);
Field sizes_field(const char* name, std::optional<Sizes>& out);

// Reads all members but `kind`. BundleError, see `read_record`.
void read_layout(const Json& json, const std::string& where, const std::vector<Field>& fields);

template <std::size_t n>
std::string list_text(const std::array<std::int64_t, n>& values) {
    return python_repr(std::vector<std::int64_t>(values.begin(), values.end()));
}

}  // namespace fopru
