// Whether bytes are UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace fopru {

std::size_t first_bad_utf8(std::string_view bytes);  // its place; std::string_view::npos: all is well

}  // namespace fopru
