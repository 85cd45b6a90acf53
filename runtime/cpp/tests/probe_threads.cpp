// Two generators of one bundle in two threads, and a third thread that does what fopru.h allows it meanwhile:
// probe_threads BUNDLE IMAGE ROUNDS, for tests/test_cpp_sanitizers.py. Ends with 0 where every answer is that of a
// single thread, or its beginning where it was cancelled; and prints how many there were of each.
//
// Threads tell each other how far they are in relaxed atomics alone: those order nothing, so that ThreadSanitizer
// sees no order but the library's own.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "fopru/fopru.h"

namespace {

constexpr auto relaxed = std::memory_order_relaxed;

template <class T>
using Freed = std::unique_ptr<T, void (*)(T*)>;

void must(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "not so: %s; %s\n", what, fopru_last_error());
    std::_Exit(1);
}

void check(fopru_status status, const char* what) { must(status == FOPRU_OK, what); }

// How far the answers of one generator are. `asked` is the answer that is to be cancelled, `done` the last for which
// that was called; the first is 1.
struct Progress {
    std::atomic<int> asked{0}, done{0};
    std::atomic<bool> at_end{false};
};

struct Hearing {
    Progress* progress;
    int round;
};

// Holds the answer until the other thread has cancelled it.
int hear(const char*, std::size_t, void* user) {
    const auto& hearing = *static_cast<Hearing*>(user);
    hearing.progress->asked.store(hearing.round, relaxed);
    while (hearing.progress->done.load(relaxed) < hearing.round) std::this_thread::yield();
    return 0;
}

struct Answers {
    int whole = 0, cancelled = 0;
};

class Asking {
public:
    Asking(fopru_bundle* bundle, const char* path, int reuse)
        : generator_(make(bundle, reuse)), path_(path), image_(image()) {}

    fopru_generator* generator() const { return generator_.get(); }

    Freed<fopru_image> image() const {
        fopru_image* image = nullptr;
        check(fopru_image_from_file(generator_.get(), path_, &image), "the image is read");
        return {image, fopru_image_free};
    }

    // Its tokens. `image` null: its own; `hearing` null: not held for a cancel; `expected` empty: any answer will do.
    std::vector<std::int64_t> answer(const fopru_image* image, Hearing* hearing,
                                     const std::vector<std::int64_t>& expected, Answers& answers) {
        fopru_request request = fopru_request_default();
        request.prompt = "What is this?";
        const fopru_image* images[] = {image == nullptr ? image_.get() : image};
        request.images = images;
        request.image_count = 1;
        request.ratio = 0.5;
        request.max_new_tokens = 12;
        request.ignore_eos = 1;
        fopru_result* made = nullptr;
        check(fopru_generate(generator_.get(), &request, hearing ? hear : nullptr, hearing, &made), "an answer");
        const Freed<fopru_result> result(made, fopru_result_free);
        std::size_t count = 0;
        const std::int64_t* ids = fopru_result_token_ids(result.get(), &count);
        const std::vector<std::int64_t> tokens(ids, ids + count);
        const bool cut = std::strcmp(fopru_result_finish_reason(result.get()), "cancelled") == 0;
        ++(cut ? answers.cancelled : answers.whole);
        must(!hearing || cut, "an answer that is cancelled from another thread says so");
        const bool begins = count <= expected.size() && std::equal(ids, ids + count, expected.begin());
        must(expected.empty() || (begins && (cut || count == expected.size())),
             "an answer is that of a single thread");
        return tokens;
    }

private:
    static Freed<fopru_generator> make(fopru_bundle* bundle, int reuse) {
        fopru_options options = fopru_options_default();
        options.threads = 1;
        options.reuse_prefix = reuse;
        options.reuse_features = reuse ? 1 << 20 : 0;
        fopru_generator* made = nullptr;
        check(fopru_generator_create(bundle, &options, &made), "a generator");
        return {made, fopru_generator_free};
    }

    Freed<fopru_generator> generator_;
    const char* path_;
    Freed<fopru_image> image_;
};

// Everything that may come while a generator answers.
void meddle(fopru_generator* generator, const char* path, Progress& progress) {
    std::int64_t ids[64];
    char text[256];
    while (!progress.at_end.load(relaxed)) {
        const int asked = progress.asked.load(relaxed);
        if (asked > progress.done.load(relaxed)) {
            fopru_cancel(generator);
            progress.done.store(asked, relaxed);
        }
        std::size_t count = 64, length = sizeof text;
        check(fopru_tokenize(generator, "What is 12?", ids, &count), "a text to ids");
        check(fopru_detokenize(generator, ids, count, text, &length), "ids to a text");
        fopru_image* image = nullptr;
        check(fopru_image_from_file(generator, path, &image), "an image while the generator is at work");
        fopru_image_free(image);
        must(fopru_generate(generator, nullptr, nullptr, nullptr, nullptr) == FOPRU_REQUEST_ERROR, "a refusal");
        must(std::strlen(fopru_last_error()) > 0, "a message of this thread");
    }
}

// What every thread works on, and reads alone.
struct Shared {
    fopru_bundle* bundle;
    const char* path;
    int rounds;
    Freed<fopru_image> image{nullptr, fopru_image_free};
    std::vector<std::int64_t> expected{};  // tokens of a single thread
};

// Cancelled at any moment: between answers, in the encoder, at the first token or the last.
void answer_in_a_storm(Asking& asking, const Shared& shared, Answers& answers) {
    std::atomic<bool> at_end{false};
    std::thread calling([&] {
        while (!at_end.load(relaxed)) {
            fopru_cancel(asking.generator());
            std::this_thread::yield();
        }
    });
    for (int round = 0; round < shared.rounds; ++round) {
        asking.answer(shared.image.get(), nullptr, shared.expected, answers);
    }
    at_end.store(true, relaxed);
    calling.join();
}

// One generator, made and used in this thread; half of its answers are cancelled at their first text.
Answers work(const Shared& shared, int reuse) {
    Answers answers;
    Asking asking(shared.bundle, shared.path, reuse);
    Progress progress;
    std::thread other(meddle, asking.generator(), shared.path, std::ref(progress));
    for (int round = 1; round <= shared.rounds; ++round) {
        Hearing hearing{&progress, round};
        const fopru_image* image = round % 3 ? shared.image.get() : nullptr;
        asking.answer(image, round % 2 ? nullptr : &hearing, shared.expected, answers);
    }
    answer_in_a_storm(asking, shared, answers);
    progress.at_end.store(true, relaxed);
    other.join();
    asking.answer(nullptr, nullptr, shared.expected, answers);
    return answers;
}

}  // namespace

int main(int count, char** arguments) {
    must(count == 4, "three arguments: bundle, image, rounds");
    fopru_bundle* opened = nullptr;
    check(fopru_bundle_open(arguments[1], FOPRU_VERIFY, &opened), "the bundle is opened");
    const Freed<fopru_bundle> bundle(opened, fopru_bundle_free);
    Shared shared{opened, arguments[2], std::atoi(arguments[3])};
    {
        Answers alone;
        Asking asking(opened, shared.path, 0);
        shared.expected = asking.answer(nullptr, nullptr, {}, alone);
        must(shared.expected.size() == 12, "the answer of a single thread has 12 tokens");
        shared.image = asking.image();
    }
    Answers answers[2];
    std::thread one([&] { answers[0] = work(shared, 0); }), two([&] { answers[1] = work(shared, 1); });
    one.join();
    two.join();
    for (const Answers& of : answers) std::printf("%d whole, %d cancelled\n", of.whole, of.cancelled);
    return 0;
}
