#include "output.h"

#include <unistd.h>
#include <csignal>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/error.h"

namespace fopru::cli {
namespace {

// A signal handler has nothing but globals; these two are all it touches.
std::atomic<Generator*> answering{nullptr};
std::atomic<bool> was_interrupted{false};
static_assert(std::atomic<Generator*>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

extern "C" void on_interrupt(int) {
    Generator* generator = answering.load();
    if (generator != nullptr && !was_interrupted.exchange(true)) {
        generator->cancel();
        return;
    }
    // Ends a half-written line. Nothing can be done where it cannot be written.
    if (::write(STDERR_FILENO, "\n", 1) < 0) ::_exit(code_interrupted);
    ::_exit(code_interrupted);
}

std::string system_text(int number) {
    return "[Errno " + std::to_string(number) + "] " + std::strerror(number);
}

int failed(const std::string& message) {
    write_error("error: " + message + "\n");
    return code_error;
}

}  // namespace

OutputError::OutputError(int number) : std::runtime_error(system_text(number)), number_(number) {}

void write_out(const std::string& text) {
    errno = 0;
    const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
    if (!written || std::fflush(stdout) != 0) throw OutputError(errno);
}

void write_error(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
}

int exit_code_of(const std::function<int()>& run) {
    try {
        return run();
    } catch (const Error& error) {
        return failed(error.what());
    } catch (const OutputError& error) {
        if (error.number() == EPIPE) return code_no_reader;
        return failed("the output cannot be written (" + std::string(error.what()) +
                      "): free some space, or redirect it");
    } catch (const std::bad_alloc&) {
        return failed("the memory does not suffice: keep fewer tokens, or give smaller images");
    } catch (const std::exception& error) {
        return failed("a fault of fopru itself (" + std::string(error.what()) +
                      "): report it with the command");
    }
}

void watch_signals() {
    std::signal(SIGPIPE, SIG_IGN);
    struct sigaction before = {};
    // A shell ignores Ctrl-C for what it runs in the background; so it stays.
    if (::sigaction(SIGINT, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) return;
    struct sigaction action = {};
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGINT, &action, nullptr);
}

AnswerGuard::AnswerGuard(Generator& generator) {
    was_interrupted.store(false);
    answering.store(&generator);
}

AnswerGuard::~AnswerGuard() { answering.store(nullptr); }

bool AnswerGuard::interrupted() const { return was_interrupted.load(); }

}  // namespace fopru::cli
