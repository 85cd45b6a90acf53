// Runs src/text for tests/test_cpp_text.py. A line of standard input is a command, an object; so is its
// answer:
//   {"load": FILE}                          {"ms"}
//   {"encode": [TEXT, ...], "special": B}   {"ids": [[ID, ...], ...], "ms"}; an ID list may be an error's
//   text
//   {"decode": [[ID, ...], ...]}            {"texts": [TEXT, ...]}
//   {"work": REGEX, "texts": [TEXT, ...]}     {"spent": N, "limit": N}, see text/work.h
//   {"names": [ID, ...]}                    {"texts": [TEXT or null, ...]}
//   {"stream": [ID, ...]}                   {"pieces": [TEXT, ...]}, the last from `flush`
//   {"stop": [TEXT, ...], "push": [TEXT]}   {"pieces": [TEXT, ...], "found": [B, ...]}, the last from `flush`
// or {"error"}.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "text/pattern.h"
#include "text/tokenizer.h"

namespace {

using fopru::Json;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point begin) {
    return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

std::vector<std::int64_t> ids_of(const Json& json) {
    std::vector<std::int64_t> ids;
    for (const Json& id : *json.array()) ids.push_back(*id.integer());
    return ids;
}

Json encode(const fopru::Tokenizer& tokenizer, const Json& texts, bool special) {
    Json::Array lists;
    const auto begin = Clock::now();
    for (const Json& text : *texts.array()) {
        try {
            Json::Array list;
            for (const std::int64_t id : tokenizer.encode(*text.text(), special)) list.emplace_back(id);
            lists.emplace_back(std::move(list));
        } catch (const fopru::RequestError& error) {
            lists.emplace_back(error.what());
        }
    }
    return Json(Json::Object{{"ids", Json(std::move(lists))}, {"ms", Json(milliseconds_since(begin))}});
}

Json stream(const fopru::Tokenizer& tokenizer, const Json& ids) {
    fopru::TextPieces text(tokenizer);
    Json::Array pieces;
    for (const std::int64_t id : ids_of(ids)) pieces.emplace_back(text.push(id));
    pieces.emplace_back(text.flush());
    return Json(Json::Object{{"pieces", Json(std::move(pieces))}});
}

Json stop(const Json& strings, const Json& texts) {
    std::vector<std::string> list;
    for (const Json& string : *strings.array()) list.push_back(*string.text());
    fopru::StopStrings stop_strings(std::move(list));
    Json::Array pieces, found;
    for (const Json& text : *texts.array()) {
        pieces.emplace_back(stop_strings.push(*text.text()));
        found.emplace_back(stop_strings.found());
    }
    pieces.emplace_back(stop_strings.flush());
    return Json(Json::Object{{"pieces", Json(std::move(pieces))}, {"found", Json(std::move(found))}});
}

Json work(const std::string& regex, const Json& texts) {
    const fopru::Pattern pattern = fopru::Pattern::from_regex(regex, "pattern");
    fopru::Work work(0);
    for (const Json& text : *texts.array()) {
        work.allow(text.text()->size());
        pattern.spans(*text.text(), work);
    }
    return Json(Json::Object{{"spent", Json(static_cast<std::int64_t>(work.spent()))},
                             {"limit", Json(static_cast<std::int64_t>(work.limit()))}});
}

Json answer(const Json& command, std::unique_ptr<const fopru::Tokenizer>& tokenizer) {
    if (const Json* file = command.find("load")) {
        std::ifstream in(*file->text(), std::ios::binary);
        const std::string text{std::istreambuf_iterator<char>(in), {}};
        const Json json = fopru::parse_json(text, "tokenizer.json");
        const auto begin = Clock::now();
        tokenizer = fopru::make_tokenizer(json);
        return Json(Json::Object{{"ms", Json(milliseconds_since(begin))}});
    }
    if (const Json* texts = command.find("encode"))
        return encode(*tokenizer, *texts, *command.find("special")->boolean());
    if (const Json* regex = command.find("work")) return work(*regex->text(), *command.find("texts"));
    if (const Json* ids = command.find("stream")) return stream(*tokenizer, *ids);
    if (const Json* strings = command.find("stop")) return stop(*strings, *command.find("push"));
    Json::Array texts;
    if (const Json* lists = command.find("decode")) {
        for (const Json& list : *lists->array()) {
            const std::vector<std::int64_t> ids = ids_of(list);
            texts.emplace_back(tokenizer->decode(ids.data(), ids.size()));
        }
    } else {
        for (const std::int64_t id : ids_of(*command.find("names"))) {
            const std::optional<std::string> text = tokenizer->token_text(id);
            texts.push_back(text ? Json(*text) : Json());
        }
    }
    return Json(Json::Object{{"texts", Json(std::move(texts))}});
}

}  // namespace

int main() {
    std::unique_ptr<const fopru::Tokenizer> tokenizer;
    for (std::string line; std::getline(std::cin, line);) {
        try {
            std::cout << answer(fopru::parse_json(line, "the command"), tokenizer).dump() << std::endl;
        } catch (const fopru::Error& error) {
            std::cout << Json(Json::Object{{"error", Json(error.what())}}).dump() << std::endl;
        }
    }
    return 0;
}
