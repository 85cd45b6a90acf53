// How commands end, and how they write: runtime/output.py.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

#include "generate/generator.h"

namespace fopru::cli {

constexpr int code_done = 0, code_differs = 1, code_error = 2, code_interrupted = 130, code_no_reader = 141;

// stdout took no more; `number` is errno.
class OutputError : public std::runtime_error {
public:
    explicit OutputError(int number);
    int number() const noexcept { return number_; }

private:
    int number_;
};

void write_out(const std::string& text);    // to stdout, at once. OutputError
void write_error(const std::string& text);  // to stderr

// Run a command: an error is one line on stderr and code 2, a reader of stdout that left is 141, in silence.
int exit_code_of(const std::function<int()>& run);

// From here on a pipe without a reader is an error of writing and no signal, and Ctrl-C ends the answer under
// way; with none under way, or the second time, it ends the process with code 130. Call it once, before other
// threads begin.
void watch_signals();

// While it lives, Ctrl-C cancels the answers of a generator, which must outlive it. One at a time.
class AnswerGuard {
public:
    explicit AnswerGuard(Generator& generator);
    ~AnswerGuard();
    AnswerGuard(const AnswerGuard&) = delete;
    AnswerGuard& operator=(const AnswerGuard&) = delete;
    bool interrupted() const;  // Ctrl-C came
};

}  // namespace fopru::cli
