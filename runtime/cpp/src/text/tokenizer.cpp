#include "text/tokenizer.h"

#include <limits>
#include <utility>

#include "base/error.h"
#include "base/python_text.h"
#include "text/added_tokens.h"
#include "text/decoder.h"
#include "text/fields.h"
#include "text/model.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/utf8.h"
#include "text/work.h"

namespace fopru {
namespace {

class JsonTokenizer : public Tokenizer {
public:
    explicit JsonTokenizer(const Fields& fields)
        : normalizer_(make_normalizer(fields.find("normalizer"))),
          pre_tokenizer_(make_pre_tokenizer(fields.find("pre_tokenizer"))),
          model_(make_model(fields.at("model"))),
          post_processor_(fields.find("post_processor")),
          decoder_(make_decoder(fields.find("decoder"))),
          added_(fields.find("added_tokens"), model_->vocabulary(), normalizer_.get()) {}

    std::vector<std::int64_t> encode(std::string_view text, bool add_special_tokens) const override {
        const std::size_t valid = valid_utf8_prefix(text);
        if (valid != text.size()) {
            throw RequestError("the text is not UTF-8 from byte " + std::to_string(valid) +
                               " on: convert it first");
        }
        Work work(text.size());
        Pieces pieces = added_.split(text, normalizer_.get(), work);
        if (pre_tokenizer_) pre_tokenizer_->apply(pieces, work);
        std::vector<std::int64_t> ids;
        for (const Piece& piece : pieces) {
            if (piece.token) {
                ids.push_back(*piece.token);
            } else {
                model_->append(piece.text, ids);
            }
        }
        return post_processor_.apply(std::move(ids), add_special_tokens);
    }

    std::string decode(const std::int64_t* ids, std::size_t count) const override {
        std::vector<std::string> tokens;
        for (std::size_t i = 0; i < count; ++i) {
            std::optional<std::string> text = token_text(ids[i]);
            if (text && !added_.special(*text)) tokens.push_back(std::move(*text));
        }
        if (!decoder_) return joined(tokens, " ");
        Work work(bytes_of(tokens));
        return joined(decoder_->apply(std::move(tokens), work), "");
    }

    std::optional<std::string> token_text(std::int64_t id) const override {
        if (id < 0 || id > std::numeric_limits<std::uint32_t>::max()) return std::nullopt;
        const auto small = static_cast<std::uint32_t>(id);
        if (const std::string* text = added_.text(small)) return *text;
        if (const std::optional<std::string_view> text = model_->vocabulary().text(small))
            return std::string(*text);
        return std::nullopt;
    }

private:
    std::unique_ptr<const Normalizer> normalizer_;
    std::unique_ptr<const PreTokenizer> pre_tokenizer_;
    std::unique_ptr<const Model> model_;
    PostProcessor post_processor_;
    std::unique_ptr<const Decoder> decoder_;
    AddedTokens added_;
};

}  // namespace

std::unique_ptr<const Tokenizer> make_tokenizer(const Json& json) {
    const Fields fields(json, "");
    if (const std::string version = fields.text_or("version", "1.0"); version != "1.0") {
        throw_unknown("the version", version, "1.0");
    }
    return std::make_unique<JsonTokenizer>(fields);
}

}  // namespace fopru
