// tokenizer.json, and a text behind it: what is before the first 0 byte is the file, what follows is encoded, and
// decoded again piece by piece.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const std::size_t end = input.find('\0');
    const std::string_view file = input.substr(0, end);
    const std::string_view text = end == std::string_view::npos ? "Hello world 123\n" : input.substr(end + 1);
    try {
        const auto tokenizer = fopru::make_tokenizer(fopru::parse_json(file, "tokenizer.json"));
        const std::vector<std::int64_t> ids = tokenizer->encode(text, true);
        tokenizer->decode(ids.data(), ids.size());
        fopru::TextPieces pieces(*tokenizer);
        for (const std::int64_t id : ids) pieces.push(id);
        pieces.flush();
    } catch (const fopru::Error&) {
    }
    return 0;
}
