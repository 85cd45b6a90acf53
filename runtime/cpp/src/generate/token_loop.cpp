#include "generate/token_loop.h"

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"

namespace fopru {

namespace {

std::size_t leading_space(const std::string& text) {
    std::size_t place = 0;
    while (place < text.size()) {
        const CodePoint next = code_point_at(text, place);
        if (!is_space(next.value)) break;
        place += next.bytes;
    }
    return place;
}

}  // namespace

TokenLoop::TokenLoop(const Request& request, const Vocabulary& vocabulary,
                     const std::vector<std::int64_t>& prompt_ids)
    : max_new_tokens_(request.max_new_tokens),
      sampler_(request.sampling, vocabulary.size, prompt_ids),
      decoded_(vocabulary.tokenizer),
      stop_(request.stop) {
    if (!request.ignore_eos) eos_ = vocabulary.eos;
}

std::string TokenLoop::push(const float* logits) {
    if (finished()) {
        throw RequestError("the answer has ended (" + finish_reason_ + "): begin another one");
    }
    const std::int64_t token = sampler_.pick(logits);
    token_ids_.push_back(token);
    if (std::find(eos_.begin(), eos_.end(), token) != eos_.end()) return end("eos");
    std::string piece = show(decoded_.push(token), false);
    if (stop_.found()) {
        finish_reason_ = "stop";
    } else if (static_cast<std::int64_t>(token_ids_.size()) == max_new_tokens_) {
        piece += end("length");
    }
    return piece;
}

std::string TokenLoop::cancel() { return finished() ? "" : end("cancelled"); }

std::string TokenLoop::end(const char* reason) {
    std::string piece = show(decoded_.flush(), true);
    // The rest of the text, too, may hold a stop string.
    finish_reason_ = stop_.found() ? "stop" : reason;
    return piece;
}

// What of the next decoded text belongs to the answer and is certain.
std::string TokenLoop::show(std::string text, bool final) {
    if (!begun_) {
        text.erase(0, leading_space(text));
        begun_ = !text.empty();
    }
    std::string piece = stop_.push(std::move(text));
    if (final) piece += stop_.flush();
    text_ += piece;
    return piece;
}

}  // namespace fopru
