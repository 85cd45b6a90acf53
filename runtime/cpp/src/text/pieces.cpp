// TextPieces and StopStrings: text for someone who watches it grow.
#include <algorithm>
#include <utility>

#include "base/python_text.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace fopru {
namespace {

constexpr std::string_view broken = "\xEF\xBF\xBD";

bool ends_broken(const std::string& text) {
    return text.size() >= broken.size() &&
           text.compare(text.size() - broken.size(), broken.size(), broken) == 0;
}

// Bytes of the first `count` characters.
std::size_t bytes_of(std::string_view text, std::size_t count) {
    std::size_t place = 0;
    for (; count > 0 && place < text.size(); --count) place += code_point_at(text, place).bytes;
    return place;
}

}  // namespace

std::string TextPieces::push(std::int64_t token) {
    ids_.push_back(token);
    return advance(false);
}

std::string TextPieces::flush() { return advance(true); }

std::string TextPieces::advance(bool final) {
    const std::string before = tokenizer_.decode(ids_.data() + start_, shown_ - start_);
    const std::string after = tokenizer_.decode(ids_.data() + start_, ids_.size() - start_);
    // Lengths are characters, as in Python: what was U+FFFD at the end of `before` may be another character
    // now.
    const std::size_t shown = characters(before);
    if (characters(after) <= shown || (ends_broken(after) && !final)) return "";
    start_ = shown_;
    shown_ = ids_.size();
    return after.substr(bytes_of(after, shown));
}

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    for (const std::string& string : strings_) longest_ = std::max(longest_, string.size());
    if (longest_ > 0) --longest_;
}

std::string StopStrings::push(std::string text) {
    if (found_ || strings_.empty()) return found_ ? "" : text;
    text = held_ + text;
    std::size_t end = std::string::npos;
    for (const std::string& string : strings_) end = std::min(end, text.find(string));
    found_ = end != std::string::npos;
    if (!found_) {
        // The longest end of the text with which a stop string begins is held back. Both are whole
        // characters, so no such end begins inside one.
        end = text.size();
        for (std::size_t length = std::min(longest_, text.size()); length > 0 && end == text.size();
             --length) {
            const std::string_view rest = std::string_view(text).substr(text.size() - length);
            for (const std::string& string : strings_) {
                if (string.compare(0, length, rest) == 0) end = text.size() - length;
            }
        }
    }
    held_ = found_ ? "" : text.substr(end);
    text.resize(end);
    return text;
}

std::string StopStrings::flush() { return std::exchange(held_, ""); }

}  // namespace fopru
