#include <doctest/doctest.h>

#include <limits>

#include "allocation_count.h"
#include "base/error.h"
#include "fake_backend.h"
#include "generate/feature_cache.h"
#include "generate/prefix.h"
#include "generate/request.h"
#include "generate/session_check.h"
#include "generate/token_loop.h"

using namespace fopru;

namespace {

// One character per id, as ASCII; 0 ends an answer and has no text; 0x80.. are bytes that wait for others.
class Letters : public Tokenizer {
public:
    std::vector<std::int64_t> encode(std::string_view text, bool) const override {
        return {text.begin(), text.end()};
    }
    std::string decode(const std::int64_t* ids, std::size_t count) const override {
        std::string text;
        for (std::size_t i = 0; i < count; ++i) {
            if (ids[i] >= 0x80)
                text += "\xEF\xBF\xBD";
            else if (ids[i] > 0)
                text += static_cast<char>(ids[i]);
        }
        return text;
    }
    std::optional<std::string> token_text(std::int64_t) const override { return std::nullopt; }
};

const Letters letters;
const std::vector<std::int64_t> ends = {0};
const Vocabulary vocabulary{256, ends, letters};

// What comes of answering with these tokens, piece by piece.
std::vector<std::string> pieces_of(TokenLoop& loop, const std::string& tokens) {
    std::vector<std::string> pieces;
    for (const char token : tokens) {
        std::vector<float> logits(256, 0.0F);
        logits[static_cast<unsigned char>(token)] = 1.0F;
        pieces.push_back(loop.push(logits.data()));
    }
    return pieces;
}

Request request_of(std::int64_t most, std::vector<std::string> stop = {}) {
    Request request;
    request.prompt = "?";
    request.max_new_tokens = most;
    request.stop = std::move(stop);
    return request;
}

using Texts = std::vector<std::string>;

SharedTokens tokens_of(std::int64_t rows, const std::string& digest) {
    EncodedImage image;
    image.features = {nullptr, rows, 1, 0};
    return std::make_shared<VisualTokens>(VisualTokens{std::move(image), digest});
}

Positions counted(std::int64_t length, std::int64_t first = 0) {
    Positions positions;
    for (std::int64_t i = 0; i < length; ++i) positions.ids.push_back(first + i);
    positions.next = first + length;
    return positions;
}

PreparedImage picture(float value, std::size_t units = 1) {
    PreparedImage image;
    image.plan.units.assign(units, Unit{4, Grid{2, 2}, std::nullopt});
    image.plan.sequence = {0, 1, 2, 3};
    image.pixels = {{static_cast<std::int64_t>(units), 1}, std::vector<float>(units, value)};
    return image;
}

// Counts what is encoded, and remembers the seeds.
struct Encoder {
    std::vector<std::size_t> calls;
    std::vector<std::uint64_t> seeds;

    FeatureCache::Found run(FeatureCache& cache, const std::vector<const PreparedImage*>& images,
                            const std::optional<Selection>& selection) {
        return cache.encode(images, selection, cache.keys(images, selection),
                            [&](const auto& part, const auto& own) {
                                calls.push_back(part.size());
                                if (own) seeds.push_back(own->seed);
                                std::vector<SharedTokens> made;
                                for (std::size_t i = 0; i < part.size(); ++i)
                                    made.push_back(tokens_of(25, "x"));
                                return made;
                            });
    }
};

}  // namespace

TEST_CASE("an answer begins with its first visible character and ends with an end token") {
    TokenLoop loop(request_of(9), vocabulary, {});
    CHECK(pieces_of(loop, std::string(" \nab \0", 6)) == Texts{"", "", "a", "b", " ", ""});
    CHECK(loop.text() == "ab ");
    CHECK(loop.finish_reason() == "eos");
    CHECK(loop.token_ids() == std::vector<std::int64_t>{32, 10, 97, 98, 32, 0});
    const float logits[256] = {};
    CHECK_THROWS_WITH_AS(loop.push(logits), "the answer has ended (eos): begin another one", RequestError);
    CHECK(loop.cancel().empty());
    CHECK(loop.finish_reason() == "eos");
}

TEST_CASE("an answer ends at its length, half a character included") {
    TokenLoop loop(request_of(3), vocabulary, {});
    CHECK(pieces_of(loop, "a\x80\x80") == Texts{"a", "", "\xEF\xBF\xBD\xEF\xBF\xBD"});
    CHECK(loop.finish_reason() == "length");
}

TEST_CASE("end tokens do not end an answer that ignores them") {
    Request request = request_of(3);
    request.ignore_eos = true;
    TokenLoop loop(request, vocabulary, {});
    pieces_of(loop, std::string("a\0b", 3));
    CHECK(loop.text() == "ab");
    CHECK(loop.finish_reason() == "length");
}

TEST_CASE("what may become a stop string is held back") {
    TokenLoop loop(request_of(9, {"end", "e!"}), vocabulary, {});
    CHECK(pieces_of(loop, "seen end") == Texts{"s", "", "e", "", "en ", "", "", ""});
    CHECK(loop.text() == "seen ");
    CHECK(loop.finish_reason() == "stop");
    TokenLoop cancelled(request_of(9, {"end"}), vocabulary, {});
    CHECK(pieces_of(cancelled, "been") == Texts{"b", "", "e", ""});
    CHECK(cancelled.cancel() == "en");
    CHECK(cancelled.text() == "been");
    CHECK(cancelled.finish_reason() == "cancelled");
}

TEST_CASE("prompts share rows as far as ids, positions and images agree") {
    const std::vector<std::int64_t> ids = {1, 2, 9, 9, 9, 5, 6};
    const auto rows = [&](const std::string& digest, std::int64_t first = 0) {
        return prompt_rows(ids, counted(7, first), {tokens_of(2, digest), tokens_of(1, "b")}, 9);
    };
    const PromptRows own = rows("a");
    CHECK(own.images.size() == 2);
    CHECK(own.images[1].first_row == 4);
    CHECK(own.common(rows("a")) == 7);
    CHECK(own.common(rows("c")) == 2);
    CHECK(own.common(rows("a", 1)) == 0);
    PromptRows longer = rows("a");
    longer.follow({7, 9});
    CHECK(longer.ids.size() == 9);
    CHECK(longer.positions.ids.back() == 8);
    CHECK(longer.positions.next == 9);
    CHECK(longer.common(own) == 7);
    // A generated id of the image token is no image.
    PromptRows image_next = prompt_rows({1, 2, 9, 9, 9, 5, 6, 7, 9}, counted(9),
                                        {tokens_of(2, "a"), tokens_of(1, "b"), tokens_of(1, "c")}, 9);
    CHECK(longer.common(image_next) == 8);
    CHECK_THROWS_AS(prompt_rows({1, 2}, counted(2), {tokens_of(2, "a")}, 9), RequestError);
    PromptRows axes = own;
    axes.positions.axes = 3;
    CHECK(own.common(axes) == 0);
}

TEST_CASE("generated rows go on with one position on every axis") {
    PromptRows rows{{1, 2}, {}, {}};
    rows.positions.axes = 2;
    rows.positions.ids = {0, 1, 0, 0};
    rows.positions.next = 5;
    rows.follow({8, 9});
    CHECK(rows.positions.ids == std::vector<std::int64_t>{0, 1, 5, 6, 0, 0, 5, 6});
}

TEST_CASE("pictures are kept by what decides their tokens, the last used ones as long as they fit") {
    FeatureCache cache(450);  // 25 rows of a float and 32 bytes of the sequence: three pictures
    Encoder encoder;
    const PreparedImage one = picture(1), two = picture(2), three = picture(3), four = picture(4);
    CHECK(image_bytes(tokens_of(25, "x")->image) == 100);
    CHECK(encoder.run(cache, {&one, &two, &one}, std::nullopt).reused == 1);
    CHECK(encoder.calls == std::vector<std::size_t>{2});
    CHECK(cache.size() == 2);
    CHECK(encoder.run(cache, {&three, &one, &four}, std::nullopt).reused == 1);
    CHECK(encoder.calls == std::vector<std::size_t>{2, 1, 1});
    CHECK(cache.bytes() == 400);
    const PreparedImage five = picture(5);
    encoder.run(cache, {&five}, std::nullopt);  // `two` makes room
    CHECK(cache.size() == 4);
    CHECK(encoder.run(cache, {&one}, std::nullopt).reused == 1);
    CHECK(encoder.run(cache, {&two}, std::nullopt).reused == 0);
    cache.clear();
    CHECK(cache.bytes() == 0);
    CHECK(encoder.run(cache, {&one}, std::nullopt).reused == 0);
    FeatureCache none(0);
    CHECK(none.keys({&one}, std::nullopt).empty());
    CHECK(encoder.run(none, {&one, &one}, std::nullopt).reused == 0);
}

TEST_CASE("memory that ends leaves kept pictures as they were") {
    FeatureCache cache(250);  // two pictures
    Encoder encoder;
    encoder.calls.reserve(1000);
    const PreparedImage one = picture(1), two = picture(2), three = picture(3), four = picture(4);
    encoder.run(cache, {&one, &two}, std::nullopt);
    int refusals = 0;
    for (bool refused = true; refused; ++refusals) {
        tests::refuse_allocation(refusals);
        try {
            encoder.run(cache, {&three}, std::nullopt);
            refused = tests::refuse_allocation(-1);
        } catch (const std::bad_alloc&) {
            tests::refuse_allocation(-1);
            CHECK(cache.size() == 2);
            CHECK(cache.bytes() == 200);
            CHECK(encoder.run(cache, {&one, &two}, std::nullopt).reused == 2);
        }
    }
    CHECK(refusals > 5);
    CHECK(cache.bytes() == 200);  // `one` made room
    CHECK(encoder.run(cache, {&two, &three}, std::nullopt).reused == 2);
    CHECK(encoder.run(cache, {&four, &one}, std::nullopt).reused == 0);
    CHECK(cache.size() == 2);
    CHECK(cache.bytes() == 200);
}

TEST_CASE("selections have keys of their own, and units the seeds that they have among all") {
    FeatureCache cache(10000);
    Encoder encoder;
    const PreparedImage one = picture(1, 3), two = picture(2);
    Selection selection{{{1, 1, 1}, {2}}, "random", 40};
    encoder.run(cache, {&one, &two}, selection);
    CHECK(encoder.run(cache, {&one, &two}, selection).reused == 2);
    selection.seed = 41;
    CHECK(encoder.run(cache, {&one, &two}, selection).reused == 0);
    Selection alone{{{2}}, "random", 43};
    CHECK(encoder.run(cache, {&two}, alone).reused == 1);  // place 3 among all, before
    alone.selector = "rank";
    CHECK(encoder.run(cache, {&two}, alone).reused == 0);
    alone.seed = 99;  // which no one looks at
    CHECK(encoder.run(cache, {&two}, alone).reused == 1);
    alone.counts = {{1}};
    CHECK(encoder.run(cache, {&two}, alone).reused == 0);
    CHECK(encoder.run(cache, {&two}, std::nullopt).reused == 0);
    CHECK(encoder.seeds == std::vector<std::uint64_t>{40, 41, 43, 99});
}

TEST_CASE("an image's digest is of its plan too") {
    const PreparedImage one = picture(1);
    PreparedImage other = picture(1);
    CHECK(image_digest(one) == image_digest(other));
    other.plan.offsets = {0};
    CHECK(image_digest(one) != image_digest(other));
    other = picture(1);
    other.plan.mosaic = Grid{1, 1};
    CHECK(image_digest(one) != image_digest(other));
    other = picture(1);
    other.pixels.values[0] = 1.0000001F;
    CHECK(image_digest(one) != image_digest(other));
}

TEST_CASE("an opened graph has the tensors of its table") {
    const fake::FakeSession session({{"ids", Dtype::int64, {-1, 4}}}, {{"out", Dtype::float32, {}}}, {});
    GraphInfo info;
    info.inputs = {{"ids", "int64", {2, -1}, {"", "seq"}}};
    info.outputs = {{"out", "float32", {3}, {""}}};
    CHECK_NOTHROW(check_session("g", info, session));
    info.inputs[0].shape = {-1, 5};
    info.inputs[0].names = {"batch", ""};
    CHECK_THROWS_WITH_AS(
        check_session("g", info, session),
        "graph g: input ids is [?, 4] in the file, but bundle.json says [batch, 5]: rebuild the "
        "bundle with `python -m export.build`",
        BundleError);
    info.inputs[0].name = "mask";
    CHECK_THROWS_WITH_AS(
        check_session("g", info, session),
        "graph g has no input mask, which bundle.json lists (it has ids): rebuild the bundle with "
        "`python -m export.build`",
        BundleError);
}

TEST_CASE("texts that are not UTF-8 are refused") {
    Request request = request_of(1);
    request.prompt = "caf\xC3\xA9 \xFF";
    CHECK_THROWS_WITH_AS(request.check(),
                         "the prompt 'café �' is not valid Unicode at character 5: write it in UTF-8",
                         RequestError);
    request = request_of(1, {"\xED\xA0\x80"});  // a surrogate
    CHECK_THROWS_AS(request.check(), RequestError);
    request = request_of(1);
    request.history = {{"a", 0, "\x80"}};
    CHECK_THROWS_AS(request.check(), RequestError);
    request = request_of(1);
    request.sampling.temperature = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_WITH_AS(request.check(), "temperature is nan, expected 0 (greedy) or a positive number",
                         RequestError);
}

TEST_CASE("a result in a few lines") {
    Result result;
    result.token_ids = {1, 2, 3};
    result.finish_reason = "eos";
    result.prompt_tokens = 72;
    result.visual_tokens_before = {196, 196};
    result.visual_tokens_after = {59, 59};
    result.pruned = true;
    result.timings.decode = 0.5;
    result.timings.prefill = 0.0125;
    result.kv_bytes = 1 << 20;
    result.kv_bytes_unpruned = 3 << 20;
    result.kv_bytes_allocated = 1536;
    Texts lines = summary_lines(result);
    CHECK(lines[0] == "visual tokens   392 → 118 (2 images, 196 → 59 each)");
    CHECK(lines[1] == "prompt          72 tokens");
    CHECK(lines[3] == "answer          3 tokens (eos), 4.0 tokens/s");
    CHECK(lines[4] == "KV cache        1.0 MiB (3.0 MiB without pruning), 1.5 KiB allocated");
    result.pruned = false;
    result.reason = "because";
    result.visual_tokens_after[1] = 60;
    result.reused_tokens = 7;
    lines = summary_lines(result);
    CHECK(lines[0] == "visual tokens   392 → 119 (2 images: 196 → 59, 196 → 60)");
    CHECK(lines[1] == "not pruned      because");
    CHECK(lines[2] == "prompt          72 tokens, 7 of them from the KV cache");
}
