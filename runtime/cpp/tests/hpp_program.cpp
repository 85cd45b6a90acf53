// fopru.hpp for tests/test_cpp_capi.py: hpp_program BUNDLE IMAGE. Prints the answer as JSON.
#include "fopru/fopru.hpp"

#include <algorithm>
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
    request.image(image).ratio(0.5).max_new_tokens(12).ignore_eos();
    return request;
}

// A request shares its images and visual tokens: they may go out of scope.
fopru::Request lasting(fopru::Generator& generator, const std::string& path, bool encode) {
    fopru::Request request("What is this?");
    request.ratio(0.5).max_new_tokens(12).ignore_eos();
    if (encode) return request.encoded(generator.encode(asking(generator.image(path))));
    return request.image(generator.image(path));
}

// The first draws of a generator with another seed or other bounds.
void check_setters(fopru::Generator& generator, const fopru::Request& request) {
    fopru::Request draws = request, likeliest = request, penalised = request;
    const auto greedy = generator.generate(request).token_ids();
    draws.temperature(100).seed(1);
    must(generator.generate(draws).token_ids() != greedy, "a temperature draws");
    must(generator.generate(likeliest.temperature(100).top_k(1)).token_ids() == greedy,
         "the one likeliest token");
    must(generator.generate(fopru::Request(draws).top_p(1e-9)).token_ids() == greedy, "the smallest top_p");
    must(generator.generate(fopru::Request(draws).min_p(1)).token_ids() == greedy, "the largest min_p");
    must(words_of<fopru::Failure>([&] {
             generator.generate(penalised.repetition_penalty(0));
         }).rfind("repetition_penalty is 0.0", 0) == 0,
         "a penalty of 0 is refused");
}

// Two generators of one bundle in two threads.
void in_two_threads(const fopru::Bundle& bundle, const std::string& path) {
    std::vector<std::int64_t> answers[2];
    const auto answer = [&](int place) {
        fopru::Generator generator(bundle, fopru::Options().threads(1).reuse_features(0).reuse_prefix(false));
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
    must(words_of<Failure>([&] { fopru::Request("?").ratio(0); }).rfind("ratio is 0.0", 0) == 0 &&
             words_of<Failure>([&] { fopru::Request("?").tokens(0); }).rfind("tokens is 0", 0) == 0,
         "0 is refused: fopru.h takes it as not given");
    must(words_of<Failure>([&] { generator.tokenize(std::string("a\0b", 3)); }).rfind("a text has", 0) == 0,
         "a text is not cut at a 0");
    must(words_of<Failure>([&] { generator.image(std::vector<std::uint8_t>()); }).find("image of 0 bytes") !=
             std::string::npos,
         "an empty file is no image");
    must(words_of<Failure>([&] { generator.image("a\n"); }).rfind("there is no image file", 0) == 0,
         "a missing file is named");
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

    must(fopru::version() == fopru_version(), "the version");
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
    must(encoded.images() == 1 && encoded.kept(1).empty(), "an image was encoded");
    must(encoded.kept(0) == result.kept(0) &&
             encoded.features().size() == result.tokens_after(0) * std::size_t(encoded.width()),
         "encoded alone");
    must(generator.detokenize(generator.tokenize("a photo")) == "a photo", "text to ids and back");
    must(!generator.prompt_ids(request).empty(), "ids of a prompt");
    for (std::size_t i = 0; i < result.token_ids().size(); ++i) {
        const fopru::Logits logits =
            i ? generator.step(result.token_ids()[i - 1]) : generator.prefill(request);
        must(std::max_element(logits.begin(), logits.end()) - logits.begin() == result.token_ids()[i],
             "steps alone");
    }
    fopru::Request chat("And now?");
    chat.turn("What is this?", {image}, "a photo").encoded(encoded);
    must(generator.generate(chat).images() == 1, "a chat");
    for (const bool encode : {false, true}) {
        must(generator.generate(lasting(generator, path, encode)).token_ids() == result.token_ids(),
             "a request keeps what it is about");
    }
    // While the generator is at work: visual tokens on the host never change.
    generator.generate(request, [&](std::string_view) { return !encoded.features().empty(); });
    check_setters(generator, request);
    must(words_of<fopru::Failure>([&] {
             fopru::Generator other(bundle, fopru::Options().backend("abacus"));
         }).rfind("backend is", 0) == 0,
         "a backend that there is not is refused");
    fopru::Generator moved = std::move(generator);
    moved.release("vision_encoder_fopru");
    moved.forget();
    in_two_threads(bundle, path);
    std::printf("%s\n", result.json().c_str());
    return 0;
}
