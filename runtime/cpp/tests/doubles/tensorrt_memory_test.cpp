// What stays as it is however long the backend works: device memory, contexts, host memory of a step;
// threads.
#include <doctest/doctest.h>

#include <thread>

#include "backend/tensorrt/pool.h"
#include "backend/tensorrt/scratch.h"
#include "base/error.h"
#include "counted_new.h"
#include "double_toys.h"
#include "tensorrt_fixture.h"

using namespace fopru_double;
using fopru::Dtype;
using fopru::Shape;

namespace {

// A picture, a prompt of 5 to 20 tokens and an answer of 5.
void answer(fopru::Backend& backend, fopru::Session& vision, fopru::Session& decoder, std::int64_t number) {
    const std::int64_t keep = 1 + number % 11, images = 1 + number % 2;
    Held pixels = hold(backend, Dtype::float32, {images, toy_tokens, toy_hidden});
    Held count = put(backend, {1}, std::vector<std::int64_t>{keep});
    Held features = hold(backend, Dtype::float32, {images, keep, toy_hidden});
    Held kept = hold(backend, Dtype::int64, {images, keep});
    Held scores = hold(backend, Dtype::float32, {images, toy_tokens});
    auto binding = vision.bind();
    binding->set_input(0, pixels.view);
    binding->set_input(1, count.view);
    binding->set_output(0, features.view);
    binding->set_output(1, kept.view);
    binding->set_output(2, scores.view);
    binding->run();
    ToyDecoder run(backend, decoder, 16 + 16 * (number % 4));
    std::vector<std::int64_t> prompt(static_cast<std::size_t>(5 + number % 12), number % toy_words);
    run.run(prompt);
    for (int step = 0; step < 3; ++step) run.run({step});
}

}  // namespace

TEST_CASE_FIXTURE(TensorRtTest, "a step takes no memory, of the device or of the host") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, embed);
    auto binding = session->bind();
    Held ids = put(*backend, {1, 1}, std::vector<std::int64_t>{1});
    Held rows = hold(*backend, Dtype::float32, {1, 9, toy_hidden});
    const std::int64_t id = 3;
    float values[toy_hidden] = {};
    const auto step = [&](int number) {
        fopru::View row = rows.view;
        row.shape = {1, 1, toy_hidden};
        row.offset = static_cast<std::size_t>(number % 9) * toy_hidden * sizeof(float);  // not aligned
        backend->upload(ids.view, &id);
        binding->set_input(0, ids.view);
        binding->set_output(0, row);
        binding->run();
        backend->download(values, row);
    };
    for (int number = 0; number < 9; ++number) step(number);
    device().counts["cudaMalloc"] = device().counts["cudaMallocHost"] = 0;
    std::int64_t taken = 0;
    for (int number = 0; number < 18; ++number) {
        const std::int64_t before = news_of_backend();
        step(number);
        taken += news_of_backend() - before;
    }
    CHECK(taken == 0);

    auto language = open(*backend, decoder);
    ToyDecoder run(*backend, *language, 60);
    run.run({1, 2, 3});
    run.run({4});  // makes the context of steps
    const std::int64_t before = run.news();
    CHECK(before > 0);
    device().counts["cudaMalloc"] = device().counts["cudaMallocHost"] = 0;
    for (int number = 0; number < 40; ++number) run.run({number % toy_words});
    CHECK(run.news() == before);
    CHECK(device().counts["cudaMalloc"] == 0);
    CHECK(device().counts["cudaMallocHost"] == 0);
}

TEST_CASE_FIXTURE(TensorRtTest, "1,000 requests that differ do not grow") {
    auto backend = fopru::make_tensorrt_backend({});
    auto eyes = open(*backend, vision), words = open(*backend, decoder);
    for (std::int64_t number = 0; number < 44; ++number) answer(*backend, *eyes, *words, number);
    backend->wait();
    const std::size_t used = device().used(), pinned = device().pinned.size();
    const std::int64_t contexts = device().counts["contexts"];
    device().counts["cudaMalloc"] = device().counts["cudaMallocHost"] = 0;
    for (std::int64_t number = 0; number < 1000; ++number) answer(*backend, *eyes, *words, number);
    CHECK(device().used() == used);
    CHECK(device().pinned.size() == pinned);
    CHECK(device().counts["contexts"] == contexts);
    CHECK(device().counts["cudaMalloc"] == 0);
    CHECK(device().counts["cudaMallocHost"] == 0);
}

TEST_CASE_FIXTURE(TensorRtTest, "more values of a shape tensor than are kept") {
    files[vision] = R"({"toy": "copy", "scratch": 0, "profiles": [{}], "tensors": [
        {"name": "x", "type": 0, "dims": [1], "input": true},
        {"name": "n", "type": 8, "dims": [2], "input": true,
         "host": true}, {"name": "y", "type": 0, "dims": [1], "input": false}]})";
    write_engines();
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, vision);
    auto binding = session->bind();
    Held x = put(*backend, {1}, std::vector<float>{3}), y = hold(*backend, Dtype::float32, {1});
    Held n = hold(*backend, Dtype::int64, {2});
    for (std::int64_t number = 0; number < 300; ++number) {  // each while the ones before are still in flight
        const std::int64_t values[] = {number, number / 2};
        backend->upload(n.view, values);
        binding->set_input(0, x.view);
        binding->set_input(1, n.view);
        binding->set_output(0, y.view);
        binding->run();
    }
    CHECK(floats(*backend, y.view)[0] == 3);
}

TEST_CASE_FIXTURE(TensorRtTest, "scratch memory is one block, as large as the largest engine needs") {
    auto backend = fopru::make_tensorrt_backend({});
    auto eyes = open(*backend, vision), words = open(*backend, decoder);
    answer(*backend, *eyes, *words, 3);
    backend->wait();
    const std::size_t before = device().used();
    auto again = open(*backend, decoder);  // a third engine of 5,000 bytes takes nothing
    ToyDecoder run(*backend, *again, 1);
    const std::size_t cache = device().used();
    run.run({1});
    CHECK(device().used() - cache < 5000);
    CHECK(cache >= before);
}

TEST_CASE_FIXTURE(TensorRtTest, "a session is used by several threads, with a binding and buffers each") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, decoder);
    std::vector<std::vector<float>> got(4);
    std::vector<std::thread> threads;
    for (std::size_t own = 0; own < got.size(); ++own) {
        threads.emplace_back([&, own] {
            ToyDecoder run(*backend, *session, 40);
            std::vector<std::int64_t> tokens = {static_cast<std::int64_t>(own), 1, 2};
            got[own] = run.run(tokens);
            for (int step = 0; step < 20; ++step) got[own] = run.run({step % toy_words});
        });
    }
    for (std::thread& own : threads) own.join();
    for (std::size_t own = 0; own < got.size(); ++own) {
        std::vector<std::int64_t> tokens = {static_cast<std::int64_t>(own), 1, 2};
        for (int step = 0; step < 20; ++step) tokens.push_back(step % toy_words);
        const std::vector<float> expected = expected_logits(tokens);
        // Sums in float, over 23 rows.
        for (int at = 0; at < toy_words; ++at) {
            const auto place = static_cast<std::size_t>(at);
            CHECK(got[own][place] == doctest::Approx(expected[place]).epsilon(1e-4));
        }
    }
}

TEST_CASE_FIXTURE(TensorRtTest, "every thread works on the GPU that the backend was made on") {
    device().gpus = 3;
    current_gpu() = 2;
    auto backend = fopru::make_tensorrt_backend({});
    current_gpu() = 1;
    std::vector<float> got;
    int after = -1;
    std::thread([&] {  // has GPU 0
        auto session = open(*backend, decoder);
        ToyDecoder run(*backend, *session, 40);
        got = run.run({1, 2});
        after = current_gpu();
    })
        .join();
    CHECK(got[0] == doctest::Approx(expected_logits({1, 2})[0]).epsilon(1e-4));  // sums in float
    CHECK(after == 0);
    backend.reset();
    CHECK(current_gpu() == 1);  // each thread has its own again
}

TEST_CASE("the pool gives blocks again, and holds no more than it must") {
    reset();
    {
        fopru::Cuda cuda;
        fopru::Pool pool(cuda);
        const fopru::Block first = pool.take(1000);
        CHECK(first.bytes == 1024);
        pool.give(first);
        CHECK(pool.take(900).address == first.address);
        pool.give(first);
        const fopru::Block other = pool.take(512);  // a block more than a quarter too large does not serve
        CHECK(other.address != first.address);
        pool.give(other);
        CHECK(pool.take(0).address == other.address);
        CHECK(pool.allocated() == 1024 + 512);
        CHECK(error_of([&] {
                  pool.take(static_cast<std::size_t>(-1));
              }).find("more than there are addresses") != std::string::npos);

        // What is idle goes when all would be more than 64 MiB above what was in use at once.
        for (std::size_t size = 1; size < 20; ++size) pool.give(pool.take(size * (std::size_t{3} << 20)));
        CHECK(pool.allocated() <= (std::size_t{19 * 3 + 64} << 20) + 8192);
        // And when the device has no more.
        std::vector<fopru::Block> all;
        for (int at = 0; at < 9; ++at) all.push_back(pool.take(std::size_t{110} << 20));
        CHECK(error_of([&] { pool.take(std::size_t{110} << 20); }) ==
              "backend: the device has " + std::to_string((device().total - device().used()) >> 20) +
                  " of 1024 MiB free, but 110 MiB are needed in one piece: lower the ratio or "
                  "max_new_tokens, or keep "
                  "less between requests");
        for (const fopru::Block& own : all) pool.give(own);
        pool.trim();
        CHECK(device().blocks() == 1);  // the one of 512 bytes was never given back
    }
    CHECK(device().violations.empty());
    reset();
}
