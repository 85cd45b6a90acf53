// The interactive loop: turns from lines, with history, images and ratio kept between them. runtime/chat.py.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "session.h"

namespace fopru::cli {

constexpr const char* chat_help =
    "commands: /image FILE, /ratio R (fraction of tokens kept), /clear (history, images), /help, /quit";

// One conversation with a generator, which must outlive it and goes on from the KV cache of the turn before.
// The chat holds its images as they were read: a file that changes meanwhile does not change what was talked
// about.
class Chat {
public:
    // `settings` holds what every turn has in common.
    Chat(Generator& generator, const Request& settings);

    // One line of a person: false where it is /quit. An error ends the turn, not the chat; it is on stderr
    // then.
    bool take(const std::string& line);
    void add_image(const std::string& path);  // goes with the next question; ImageError: it is not added

    const std::optional<Result>& last() const { return last_; }  // answer that came to its end
    int failures() const { return failures_; }

private:
    void command(const std::string& text);
    void turn(const std::string& prompt);
    void finish(const Result& result);

    Generator& generator_;
    Request settings_;
    std::vector<SharedImage> past_, pending_;  // images of the history; those of the next question
    std::vector<PastTurn> history_;
    std::optional<Result> last_;
    double preparing_ = 0.0;  // seconds that the pending images took
    int failures_ = 0;
};

std::string stripped_text(const std::string& text);  // as Python's str.strip()

}  // namespace fopru::cli
