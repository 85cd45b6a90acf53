// fopru.hpp for tests/test_cpp_capi.py: hpp_program BUNDLE IMAGE. Prints the answer as JSON.
#include "fopru/fopru.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

namespace {

void must(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
}

template <class Error, class Call>
std::string words_of(const Call& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.what();
    }
    return "nothing was thrown";
}

std::vector<std::uint8_t> bytes_of(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

fopru::Request asking(const fopru::Image& image) {
    fopru::Request request("What is this?");
    request.image(image).ratio(0.5).max_new_tokens(12);
    request.values().ignore_eos = 1;
    return request;
}

// Two generators of one bundle in two threads.
void in_two_threads(const fopru::Bundle& bundle, const std::string& path) {
    std::vector<std::int64_t> answers[2];
    const auto answer = [&](int place) {
        fopru::Generator generator(bundle);
        const fopru::Image image = generator.image(path);
        answers[place] = generator.generate(asking(image)).token_ids();
    };
    std::thread one(answer, 0), other(answer, 1);
    one.join();
    other.join();
    must(answers[0] == answers[1] && answers[0].size() == 12, "two threads give the same answer");
}

void check_errors(fopru::Generator& generator, const fopru::Request& request) {
    using fopru::Failure;
    try {
        fopru::Bundle missing("no/such/folder");
        must(false, "a bundle that is missing is refused");
    } catch (const Failure& failure) {
        must(failure.status() == FOPRU_BUNDLE_ERROR, "the status of a missing bundle");
    }
    const auto throwing = [](std::string_view) { throw std::logic_error("from the callback"); };
    must(words_of<std::logic_error>([&] { generator.generate(request, throwing); }) == "from the callback",
         "what a callback throws comes out of generate");
    must(words_of<Failure>([&] {
             generator.generate(fopru::Request("?").ratio(2));
         }).rfind("ratio is 2.0", 0) == 0,
         "a ratio of 2 is refused");
}

}  // namespace

int main(int, char** arguments) {
    const std::string path = arguments[2];
    const fopru::Bundle bundle(arguments[1]);
    fopru::Generator generator(bundle);
    const fopru::Image image = generator.image(path), same = generator.image(bytes_of(arguments[2]));
    must(image.shape() == same.shape() && image.shape().size() > 2, "shapes of a file and of its bytes");
    must(image.pixels()[7] == same.pixels()[7], "pixels of a file and of its bytes");
    const fopru::Request request = asking(image);
    generator.warmup(request);

    std::string told;
    const fopru::Result result = generator.generate(request, [&](std::string_view piece) { told += piece; });
    must(result.text() == told && result.token_ids().size() == 12, "the pieces are the text");
    must(result.pruned() && result.reason().empty() && result.images() == 1, "the answer was pruned");
    must(result.tokens_after(0) < result.tokens_before(0) && !result.kept(0).empty(), "fewer tokens went on");
    const auto cancelled = generator.generate(request, [](std::string_view) { return false; });
    must(cancelled.finish_reason() == "cancelled", "false cancels");
    check_errors(generator, request);
    must(generator.generate(request).token_ids() == result.token_ids(), "errors leave no trace");

    const fopru::Encoded encoded = generator.encode(request);
    std::int64_t width = 0, vocabulary = 0;
    must(encoded.kept(0) == result.kept(0) && encoded.features(&width).size() % width == 0, "encoded alone");
    must(generator.detokenize(generator.tokenize("a photo")) == "a photo", "text to ids and back");
    must(!generator.prompt_ids(request).empty() && generator.prefill(request, &vocabulary) && vocabulary > 0,
         "prefilled alone");
    must(generator.step(result.token_ids()[0]) != nullptr, "one step");
    fopru::Request chat("And now?");
    chat.turn("What is this?", {&image}, "a photo").encoded(encoded);
    must(generator.generate(chat).images() == 1, "a chat");
    fopru::Generator moved = std::move(generator);
    moved.release("vision_encoder_fopru");
    moved.forget();
    in_two_threads(bundle, path);
    std::printf("%s\n", result.json().c_str());
    return 0;
}
