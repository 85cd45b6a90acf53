// The course of one answer, from logits to the next token, its text, and the end: runtime/token_loop.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "decode/sampler.h"
#include "generate/request.h"
#include "text/tokenizer.h"

namespace fopru {

// What an answer needs to know of its model; must outlive the loop.
struct Vocabulary {
    std::int64_t size;  // of the logits, V
    const std::vector<std::int64_t>& eos;
    const Tokenizer& tokenizer;
};

// One answer: `push` the logits of each position until it has `finished`. Knows nothing of the decoder.
//
// `token_ids` are all that were generated, also those whose text is not shown: the end token, a stop string
// and what follows it. `text` is what the pieces add up to: it starts with its first visible character,
// because models put white space before an answer, and ends before the first stop string in it; while its end
// may still become one, it is held back. Not for two threads at once.
class TokenLoop {
public:
    // `prompt_ids` with image placeholders. The request has been checked.
    TokenLoop(const Request& request, const Vocabulary& vocabulary,
              const std::vector<std::int64_t>& prompt_ids);

    // Choose a token from logits [V]; returns the text that became certain, often empty. RequestError: the
    // answer has ended. BackendError: the logits are not numbers.
    std::string push(const float* logits);
    std::string cancel();  // end the answer here, unless it has ended; returns the text that was held back
    bool finished() const { return !finish_reason_.empty(); }
    const std::string& finish_reason() const { return finish_reason_; }  // "" while it goes on
    const std::string& text() const { return text_; }
    const std::vector<std::int64_t>& token_ids() const { return token_ids_; }

private:
    std::string end(const char* reason);
    std::string show(std::string text, bool final);

    std::int64_t max_new_tokens_;
    std::vector<std::int64_t> eos_;
    Sampler sampler_;
    TextPieces decoded_;
    StopStrings stop_;
    bool begun_ = false;  // with a visible character
    std::string text_, finish_reason_;
    std::vector<std::int64_t> token_ids_;
};

}  // namespace fopru
