// Values as Python writes them, so that messages and JSON are those of the Python runtime.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace fopru {

std::string python_float(double value);  // `repr(value)`: "0.1", "1e-05", "1e+16", "3.0", "inf", "nan"

// `repr` of the value that `json.loads` would make: "'text'", "True", "None", "[1, 2.0]", "{'a': 1}". The
// text is UTF-8, whatever the value holds. It stops growing soon after `most` characters.
std::string python_repr(const Json& value, std::size_t most = SIZE_MAX);
std::string python_repr(const std::string& text);
std::string python_repr(const std::vector<std::string>& texts);
std::string python_repr(const std::vector<std::int64_t>& values);

std::size_t characters(std::string_view utf8);                       // code points
std::string first_characters(std::string_view utf8, std::size_t n);  // all where there are fewer

// "a, b, c"
std::string joined(const std::vector<std::string>& texts, const char* separator = ", ");

}  // namespace fopru
