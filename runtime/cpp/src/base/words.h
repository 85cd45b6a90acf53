// Parts of texts.
#pragma once

#include <string>

namespace fopru {

std::size_t count_of(const std::string& text, const std::string& part);  // str.count; `part` is not empty
// str.replace; an empty `from` changes nothing
std::string replaced(const std::string& text, const std::string& from, const std::string& to);

}  // namespace fopru
