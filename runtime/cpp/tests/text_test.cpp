#include <doctest/doctest.h>

#include <functional>

#include "base/error.h"
#include "text/merges.h"
#include "text/pattern.h"
#include "text/tokenizer.h"
#include "text/utf8.h"
#include "text/vocabulary.h"

namespace {

using fopru::Json;

std::unique_ptr<const fopru::Tokenizer> tokenizer_of(const std::string& parts) {
    const std::string model = R"("model": {"type": "BPE", "byte_fallback": true, "merges": ["a b", "ab c"],
        "vocab": {"<0xC3>": 0, "<0xA9>": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "abc": 6, "▁": 7, "<0xE6>": 8}})";
    return fopru::make_tokenizer(fopru::parse_json("{" + parts + model + "}", "tokenizer.json"));
}

std::string decode(const fopru::Tokenizer& tokenizer, const std::vector<std::int64_t>& ids) {
    return tokenizer.decode(ids.data(), ids.size());
}

const char* const fallback = R"("decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"},
    {"type": "Fuse"}]}, )";

}  // namespace

TEST_CASE("pairs and texts that were made to share a place are refused") {
    // Of 4096 slots, those that the hash of merges.cpp leads to: most of the pairs begin at one of four.
    constexpr std::size_t count = 2048, slots = 4096;
    fopru::Merges merges(count);
    bool taken = true;
    std::size_t put = 0;
    for (std::uint32_t right = 0; taken && put < count; ++right) {
        std::uint64_t mixed = right * 0x9E3779B97F4A7C15u;
        mixed ^= mixed >> 32;
        if (mixed % slots < 4) taken = merges.put(0, right, {0, static_cast<std::uint32_t>(++put)});
    }
    CHECK_FALSE(taken);
    CHECK(put > 1000);
    CHECK(merges.find(0, 0)->id == 1);
    CHECK(merges.find(1, 0) == nullptr);

    fopru::Json::Object vocabulary;
    for (int number = 0; vocabulary.size() < count; ++number) {
        const std::string text = std::to_string(number);
        if (std::hash<std::string_view>{}(text) % slots >= 4) continue;
        vocabulary.emplace_back(text, Json(static_cast<int>(vocabulary.size())));
    }
    CHECK_THROWS_AS(fopru::Vocabulary(Json(vocabulary), "vocab"), fopru::BundleError);
    vocabulary.resize(900);
    CHECK(fopru::Vocabulary(Json(vocabulary), "vocab").find(vocabulary.back().first) == 899U);
}

TEST_CASE("UTF-8: what is valid, and what stands for the rest") {
    CHECK(fopru::is_utf8("a\xC3\xA9\xF0\x9F\x98\x80"));
    for (const char* const bad :
         {"\x80", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE6\x97", "\xFF"}) {
        CHECK_FALSE(fopru::is_utf8(bad));
    }
    const std::string broken = "\xEF\xBF\xBD";
    // One for each longest beginning of a character.
    CHECK(fopru::utf8_lossy("a\xE6\x97z") == "a" + broken + "z");
    CHECK(fopru::utf8_lossy("\xED\xA0\x80") == broken + broken + broken);
    CHECK(fopru::utf8_lossy("\xF0\x9F\x98") == broken);
}

TEST_CASE("a tokenizer encodes by merges and falls back to bytes") {
    const auto tokenizer = tokenizer_of("");
    CHECK(tokenizer->encode("abcab\xC3\xA9", true) == std::vector<std::int64_t>{6, 5, 0, 1});
    CHECK(tokenizer->encode("", true).empty());
    // Neither a byte token nor an unknown one: left out, as the tokenizers library does.
    CHECK(tokenizer->encode("axb", true) == std::vector<std::int64_t>{5});
    CHECK_THROWS_AS(tokenizer->encode("a\xC3", true), fopru::RequestError);
    CHECK(tokenizer->token_text(5) == "ab");
    CHECK_FALSE(tokenizer->token_text(9));
    CHECK_FALSE(tokenizer->token_text(-1));
}

TEST_CASE("pieces of text wait for whole characters") {
    const auto tokenizer = tokenizer_of(fallback);
    CHECK(decode(*tokenizer, {2, 0, 1}) == "a\xC3\xA9");
    fopru::TextPieces pieces(*tokenizer);
    CHECK(pieces.push(2) == "a");
    CHECK(pieces.push(0).empty());
    CHECK(pieces.push(1) == "\xC3\xA9");
    CHECK(pieces.push(8).empty());
    // Bytes that are no character together are one U+FFFD each, those already shown among them.
    CHECK(pieces.flush() == "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST_CASE("stop strings are found across pieces, and nothing of them is shown") {
    fopru::StopStrings stop({"\xC3\xA9t", "##"});
    CHECK(stop.push("a\xC3\xA9") == "a");
    CHECK(stop.push("x#") == "\xC3\xA9x");
    CHECK(stop.push("#b").empty());
    CHECK(stop.found());
    CHECK(stop.push("more").empty());
    CHECK(stop.flush().empty());
}

TEST_CASE("matches cover the text in order, empty ones not right after another match") {
    const auto spans = [](const char* regex, std::string_view text) {
        std::string shown;
        fopru::Work work(text.size());
        for (const fopru::Span& span : fopru::Pattern::from_regex(regex, "pattern").spans(text, work)) {
            shown += span.match ? "[" : "(";
            shown += text.substr(span.begin, span.end - span.begin);
            shown += span.match ? "]" : ")";
        }
        return shown;
    };
    CHECK(spans("b+", "abbc") == "(a)[bb](c)");
    CHECK(spans("x*", "axb") == "[](a)[x](b)[]");
    CHECK(spans("", "\xC3\xA9") == "[](\xC3\xA9)[]");
    CHECK(spans("a", "") == "()");
    CHECK(spans("$", "a\nb\n") == "(a)[](\nb)[](\n)");
    CHECK(spans("\\s", "\xE1\xA0\x8E\xC2\x85") ==
          "(\xE1\xA0\x8E)[\xC2\x85]");  // U+180E is no space, U+0085 is one
}
