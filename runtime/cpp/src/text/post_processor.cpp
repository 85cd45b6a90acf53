#include "text/post_processor.h"

#include <string>
#include <utility>

#include "text/fields.h"

namespace fopru {
namespace {

// Of a template, whose longest in use have five. Each part may repeat the text or all ids of a token.
constexpr std::size_t most_parts = 64, most_text_parts = 4, most_ids = 4096;

// ["</s>", 2]
std::int64_t id_of_pair(const Fields& fields, const char* key) {
    const Json::Array& pair = fields.array(key);
    if (pair.size() != 2) throw_damaged(fields.path_of(key), "is no pair of text and id");
    return id_from_json(pair[1], fields.path_of(key) + "[1]");
}

}  // namespace

PostProcessor::PostProcessor(const Json* json) {
    if (json != nullptr) read(Fields(*json, "post_processor"));
}

void PostProcessor::read(const Fields& fields) {
    const std::string& type = fields.type();
    if (type == "ByteLevel") return;
    if (type == "TemplateProcessing") return read_template(fields);
    if (type == "BertProcessing" || type == "RobertaProcessing") {
        const Part begin{false, {id_of_pair(fields, "cls")}}, end{false, {id_of_pair(fields, "sep")}};
        templates_.push_back({begin, {true, {}}, end});
        return;
    }
    if (type == "Sequence") {
        const Json::Array& items = fields.array("processors");
        for (std::size_t i = 0; i < items.size(); ++i) {
            read(Fields(items[i], fields.path_of("processors") + "[" + std::to_string(i) + "]"));
        }
        // The tokenizers library takes what the first gives as a pair of texts for the second.
        if (templates_.size() > 1) {
            throw_unknown("the " + fields.path() + " with several parts that add tokens:", type,
                          "one of these");
        }
        return;
    }
    throw_unknown("the " + fields.path(), type,
                  "ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing and Sequence");
}

void PostProcessor::read_template(const Fields& fields) {
    std::vector<Part> parts;
    const Fields tokens = fields.object("special_tokens");
    const Json::Array& pieces = fields.array("single");
    if (pieces.size() > most_parts) {
        throw_damaged(fields.path_of("single"), "has over " + std::to_string(most_parts) + " parts");
    }
    std::size_t texts = 0, ids = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const Fields piece(pieces[i], fields.path_of("single") + "[" + std::to_string(i) + "]");
        if (piece.find("Sequence") != nullptr) {
            const Fields sequence = piece.object("Sequence");
            if (sequence.text("id") != "A") throw_damaged(sequence.path_of("id"), "is not A");
            if (++texts > most_text_parts) {
                throw_damaged(fields.path_of("single"),
                              "repeats the text over " + std::to_string(most_text_parts) + " times");
            }
            parts.push_back({true, {}});
            continue;
        }
        const Fields special = piece.object("SpecialToken");
        const Fields token = tokens.object(special.text("id"));
        Part part{false, {}};
        ids += token.array("ids").size();
        if (ids > most_ids) {
            throw_damaged(fields.path_of("single"), "adds over " + std::to_string(most_ids) + " ids");
        }
        for (const Json& id : token.array("ids")) part.ids.push_back(id_from_json(id, token.path_of("ids")));
        parts.push_back(std::move(part));
    }
    templates_.push_back(std::move(parts));
}

std::vector<std::int64_t> PostProcessor::apply(std::vector<std::int64_t> ids, bool add_special_tokens) const {
    for (const std::vector<Part>& parts : templates_) {
        std::vector<std::int64_t> result;
        for (const Part& part : parts) {
            if (part.text) {
                result.insert(result.end(), ids.begin(), ids.end());
            } else if (add_special_tokens) {
                result.insert(result.end(), part.ids.begin(), part.ids.end());
            }
        }
        ids = std::move(result);
    }
    return ids;
}

}  // namespace fopru
