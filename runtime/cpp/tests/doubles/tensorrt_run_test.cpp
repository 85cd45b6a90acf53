// Toy engines through the TensorRT backend: results, copies, streams.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "double_toys.h"
#include "tensorrt_fixture.h"

using namespace fopru_double;
using fopru::Dtype;
using fopru::Shape;
using fopru::View;

namespace {

std::vector<float> random_pixels(std::int64_t images, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> pixels(static_cast<std::size_t>(images) * toy_tokens * toy_hidden);
    for (float& own : pixels) own = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
    return pixels;
}

// The places of the `keep` greatest sums of squares, ascending.
std::vector<std::int64_t> expected_kept(const float* pixels, std::size_t keep) {
    std::vector<std::pair<float, std::int64_t>> order;
    for (int token = 0; token < toy_tokens; ++token) {
        float score = 0;
        for (int at = 0; at < toy_hidden; ++at) {
            score += pixels[token * toy_hidden + at] * pixels[token * toy_hidden + at];
        }
        order.emplace_back(-score, token);
    }
    std::sort(order.begin(), order.end());
    std::vector<std::int64_t> kept;
    for (std::size_t row = 0; row < keep; ++row) kept.push_back(order[row].second);
    std::sort(kept.begin(), kept.end());
    return kept;
}

std::size_t greatest(const std::vector<float>& values) {
    return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

// Sums are in float here and in double there, over at most 100 rows.
void check_close(const std::vector<float>& got, const std::vector<float>& expected) {
    REQUIRE(got.size() == expected.size());
    for (std::size_t at = 0; at < got.size(); ++at)
        CHECK(got[at] == doctest::Approx(expected[at]).epsilon(1e-4));
}

}  // namespace

TEST_CASE_FIXTURE(TensorRtTest, "a session says what its engine has") {
    auto backend = fopru::make_tensorrt_backend({});
    CHECK(backend->name() == std::string("tensorrt"));
    CHECK(backend->on_device());
    CHECK(backend->cache_kinds() == std::vector<std::string>{"append"});
    CHECK(backend->description() == "TensorRT 10.3.0, CUDA 12.6, NVIDIA GeForce RTX 3090 (SM86)");
    auto session = open(*backend, decoder);
    REQUIRE(session->inputs().size() == 8);
    REQUIRE(session->outputs().size() == 5);
    CHECK(session->inputs()[0].name == "inputs_embeds");
    CHECK(session->inputs()[0].shape == std::vector<std::int64_t>{1, -1, 4});
    CHECK(session->inputs()[1].dtype == Dtype::int64);
    CHECK(session->greatest(session->input("past_key_values.0.key"), 1) == 512);
    CHECK(session->greatest(session->input("inputs_embeds"), 1) == 16);
    CHECK(session->greatest(session->input("inputs_embeds"), 3) > std::int64_t{1} << 60);
    CHECK(session->input("absent") == -1);
}

TEST_CASE_FIXTURE(TensorRtTest, "an encoder runs with any number of images and any K") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, vision);
    auto binding = session->bind();
    Held keep_held = hold(*backend, Dtype::int64, {1});
    for (unsigned round = 0; round < 40; ++round) {
        const std::int64_t images = 1 + round % 3, keep = 1 + (7 * round) % 11;
        const std::vector<float> pixels = random_pixels(images, round);
        Held input = put(*backend, {images, toy_tokens, toy_hidden}, pixels);
        backend->upload(keep_held.view, &keep);
        Held features = hold(*backend, Dtype::float32, {images, keep, toy_hidden});
        Held kept = hold(*backend, Dtype::int64, {images, keep});
        Held scores = hold(*backend, Dtype::float32, {images, toy_tokens});
        set_input(*session, *binding, "pixel_values", input.view);
        set_input(*session, *binding, "num_keep", keep_held.view);
        set_output(*session, *binding, "image_features", features.view);
        set_output(*session, *binding, "kept_indices", kept.view);
        set_output(*session, *binding, "token_scores", scores.view);
        binding->run();
        const std::vector<std::int64_t> got = integers(*backend, kept.view);
        const std::vector<float> rows = floats(*backend, features.view);
        for (std::int64_t image = 0; image < images; ++image) {
            const float* own = pixels.data() + image * toy_tokens * toy_hidden;
            const auto expected = expected_kept(own, static_cast<std::size_t>(keep));
            CHECK(std::vector<std::int64_t>(got.begin() + image * keep, got.begin() + (image + 1) * keep) ==
                  expected);
            for (std::int64_t row = 0; row < keep; ++row) {
                float sum = 0;
                for (int at = 0; at < toy_hidden; ++at) {
                    sum +=
                        own[expected[static_cast<std::size_t>(row)] * toy_hidden + at] * toy_weight(0, at, 2);
                }
                CHECK(rows[static_cast<std::size_t>((image * keep + row) * toy_hidden + 2)] == sum);
            }
        }
    }
}

TEST_CASE_FIXTURE(TensorRtTest, "tokens are looked up, prefilled in chunks, and decoded for 50 steps") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, decoder);
    ToyDecoder run(*backend, *session, 100);
    std::vector<std::int64_t> tokens = {3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 1, 2, 3, 4, 5, 6, 0, 2, 4};
    run.run({tokens.begin(), tokens.begin() + 16});
    std::vector<float> logits = run.run({tokens.begin() + 16, tokens.end()});
    check_close(logits, expected_logits(tokens));
    device().to_host.clear();
    for (int step = 0; step < 50; ++step) {
        tokens.push_back(static_cast<std::int64_t>(greatest(logits)));
        logits = run.run({tokens.back()});
        check_close(logits, expected_logits(tokens));
    }
    // Of a step, the logits of one position come to the host, and nothing else.
    CHECK(device().to_host == std::vector<std::size_t>(50, toy_words * sizeof(float)));
    // One context for each profile, and the tightest one for steps.
    CHECK(device().counts["contexts"] == 2);
    CHECK(device().counts["createExecutionContext"] == 2);

    run.forget();
    check_close(run.run({6, 6, 6}), expected_logits({6, 6, 6}));
}

TEST_CASE_FIXTURE(TensorRtTest, "embeddings stay on the device") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, embed);
    auto binding = session->bind();
    Held ids = put(*backend, {1, 3}, std::vector<std::int64_t>{2, 0, 5});
    Held rows = hold(*backend, Dtype::float32, {1, 3, toy_hidden});
    set_input(*session, *binding, "input_ids", ids.view);
    set_output(*session, *binding, "inputs_embeds", rows.view);
    binding->run();
    // Rows of an image over those of its placeholder.
    Held image = put(*backend, {1, toy_hidden}, std::vector<float>{9, 8, 7, 6});
    View place = rows.view;
    place.shape = {1, toy_hidden};
    place.offset = toy_hidden * sizeof(float);
    backend->copy(place, image.view);
    backend->wait();
    CHECK(device().to_host.empty());
    const std::vector<float> got = floats(*backend, rows.view);
    CHECK(std::vector<float>(got.begin() + 4, got.begin() + 8) == std::vector<float>{9, 8, 7, 6});
    CHECK(got[0] == toy_weight(1, 2, 0));
    CHECK(got[11] == toy_weight(1, 5, 3));
}

TEST_CASE_FIXTURE(TensorRtTest, "new memory is zero, also where it was used before") {
    auto backend = fopru::make_tensorrt_backend({});
    {
        Held used = put(*backend, {3}, std::vector<float>{1, 2, 3});
    }
    CHECK(floats(*backend, hold(*backend, Dtype::float32, {3}).view) == std::vector<float>{0, 0, 0});
    // Nothing at all is a size, too.
    Held none = hold(*backend, Dtype::float32, {0, 4});
    backend->upload(none.view, nullptr);
    backend->copy(none.view, none.view);
    backend->download(nullptr, none.view);
}

TEST_CASE_FIXTURE(TensorRtTest, "a device that reads host memory by itself gets it before it may change") {
    device().coherent = true;
    auto backend = fopru::make_tensorrt_backend({});
    Held held = hold(*backend, Dtype::float32, {2});
    std::vector<float> values = {1, 2};
    backend->upload(held.view, values.data());
    values = {5, 6};
    CHECK(floats(*backend, held.view) == std::vector<float>{1, 2});
}

TEST_CASE_FIXTURE(TensorRtTest, "sessions and buffers may outlive the backend") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, embed);
    Held held = hold(*backend, Dtype::float32, {5});
    backend.reset();
    CHECK(session->inputs().size() == 1);
    CHECK(device().streams.size() == 1);
}
