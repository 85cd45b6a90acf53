#include "chat.h"

#include "base/error.h"
#include "output.h"
#include "text/utf8.h"

namespace fopru::cli {

std::string stripped_text(const std::string& text) {
    // Behind bytes that are no text nothing is looked at: the request refuses them.
    const std::string_view valid(text.data(), valid_utf8_prefix(text));
    std::size_t first = 0, last = text.size();
    while (first < valid.size() && is_space(code_point_at(valid, first).value)) {
        first += code_point_at(valid, first).bytes;
    }
    while (valid.size() == text.size() && last > first) {
        const std::size_t place = last_character(valid.substr(0, last));
        if (!is_space(code_point_at(valid, place).value)) break;
        last = place;
    }
    return text.substr(first, last - first);
}

Chat::Chat(Generator& generator, const Request& settings) : generator_(generator), settings_(settings) {}

bool Chat::take(const std::string& line) {
    const std::string text = stripped_text(line);
    if (text == "/quit") return false;
    if (text.empty()) return true;
    const bool is_command = text[0] == '/';
    try {
        is_command ? command(text) : turn(text);
    } catch (const Error& error) {
        ++failures_;
        // A failed question would fail again with the same images or history.
        const bool way_out = !is_command && !(pending_.empty() && history_.empty());
        write_error(
            "error: " + std::string(error.what()) +
            (way_out ? " (/clear forgets the history and the images that wait for the next question)" : "") +
            "\n");
    }
    return true;
}

void Chat::add_image(const std::string& path) {
    const Stopwatch watch;
    pending_.push_back(read_prepared(generator_, path));
    preparing_ += watch.seconds();
}

void Chat::command(const std::string& text) {
    const std::size_t space = text.find(' ');
    const std::string name = text.substr(0, space);
    const std::string value = space == std::string::npos ? "" : stripped_text(text.substr(space));
    if (name == "/image" && !value.empty()) {
        add_image(value);  // an unreadable file is refused now, not with the next question
        write_out("image " + value + " goes with the next question\n");
    } else if (name == "/ratio" && number_of(value)) {
        Request changed = settings_;
        changed.ratio = number_of(value);
        changed.tokens.reset();
        changed.check();
        settings_ = changed;
        write_out("keeping " + value + " of the visual tokens from now on\n");
    } else if (name == "/clear") {
        history_.clear();
        past_.clear();
        pending_.clear();
        preparing_ = 0.0;
        write_out("history and images forgotten\n");
    } else {
        write_out(std::string(chat_help) + "\n");
    }
}

void Chat::turn(const std::string& prompt) {
    Request request = settings_;
    request.prompt = prompt;
    request.images = pending_.size();
    request.history = history_;
    std::vector<SharedImage> images = past_;
    images.insert(images.end(), pending_.begin(), pending_.end());

    const AnswerGuard guard(generator_);
    std::string answer;
    std::optional<OutputError> lost;  // the answer ends in order before it is thrown
    const Result result =
        generator_.generate(request, pictures_of(images, preparing_), [&](const std::string& piece) {
            try {
                write_out(piece);
            } catch (const OutputError& error) {
                lost = error;
                return false;
            }
            answer += piece;
            return !guard.interrupted();
        });
    if (lost) throw *lost;
    const bool stopped = guard.interrupted();
    write_out(stopped ? " [stopped]\n" : "\n");
    if (answer.empty() && stopped) return;  // the question and its images are still to be asked
    if (!stopped) finish(result);
    // Templates put their own space before and after an answer.
    history_.push_back({prompt, pending_.size(), stripped_text(answer)});
    past_ = std::move(images);
    pending_.clear();
    preparing_ = 0.0;
}

// Keep the figures, and say why nothing was pruned, unless the last answer had the same reason.
void Chat::finish(const Result& result) {
    const bool same = last_ && last_->reason == result.reason;
    if (result.reason && !same) write_error("not pruned: " + *result.reason + "\n");
    last_ = result;
}

}  // namespace fopru::cli
