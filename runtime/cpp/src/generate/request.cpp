#include "generate/request.h"

#include <cmath>

#include "base/error.h"
#include "base/python_text.h"
#include "pruning/pruning.h"
#include "text/utf8.h"

namespace fopru {

namespace {

constexpr double least_penalty = 0.01;  // wide of what makes sense, and no logit overflows
constexpr double greatest_penalty = 100;
constexpr std::size_t most_shown = 60;

std::string shortened(const std::string& text) {
    const std::string shown = python_repr(utf8_lossy(text));
    return characters(shown) <= most_shown ? shown : first_characters(shown, most_shown - 3) + "...";
}

void check_text(const char* name, const std::string& text) {
    const std::size_t valid = valid_utf8_prefix(text);
    if (valid == text.size()) return;
    const std::size_t character = characters(std::string_view(text).substr(0, valid));
    throw RequestError(std::string(name) + " " + shortened(text) + " is not valid Unicode at character " +
                       std::to_string(character) + ": write it in UTF-8");
}

void check_sampling(const Sampling& sampling) {
    if (!std::isfinite(sampling.temperature) || sampling.temperature < 0.0) {
        throw RequestError("temperature is " + python_float(sampling.temperature) +
                           ", expected 0 (greedy) or a positive number");
    }
    if (!(sampling.top_p > 0.0 && sampling.top_p <= 1.0)) {
        throw RequestError("top_p is " + python_float(sampling.top_p) + ", expected a number in (0, 1]");
    }
    if (sampling.top_k < 0) {
        throw RequestError("top_k is " + std::to_string(sampling.top_k) +
                           ", expected 0 (off) or a positive integer");
    }
    if (!(sampling.min_p >= 0.0 && sampling.min_p <= 1.0)) {
        throw RequestError("min_p is " + python_float(sampling.min_p) +
                           ", expected a number in [0, 1], where 0 is off");
    }
    const double penalty = sampling.repetition_penalty;
    if (!(penalty >= least_penalty && penalty <= greatest_penalty)) {
        throw RequestError(
            "repetition_penalty is " + python_float(penalty) +
            ", expected a number from 0.01 to 100, where 1 is off and 1.1 discourages repetition");
    }
}

}  // namespace

void Request::check() const {
    check_text("the prompt", prompt);
    for (const PastTurn& turn : history) {
        check_text("the prompt", turn.prompt);
        check_text("the prompt", turn.answer);
    }
    if (ratio && tokens) {
        throw RequestError("got both ratio " + python_float(*ratio) + " and tokens " +
                           std::to_string(*tokens) + ": give one of the two");
    }
    if (ratio) kept_count(1, *ratio);  // refuses a ratio outside (0, 1]
    check_selector(selector);
    if (max_new_tokens < 1) {
        throw RequestError("max_new_tokens is " + std::to_string(max_new_tokens) + ", expected at least 1");
    }
    check_sampling(sampling);
    for (const std::string& text : stop) {
        check_text("the stop string", text);
        if (text.empty()) throw RequestError("a string of stop is empty, expected text: leave it out");
    }
}

std::size_t Request::all_images() const {
    std::size_t count = images;
    for (const PastTurn& turn : history) count += turn.images;
    return count;
}

}  // namespace fopru
