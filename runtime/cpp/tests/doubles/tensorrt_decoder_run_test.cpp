// The decoder's run on the make-believe GPU: steps are recorded for 256 rows of the past, and tokens are
// those of steps that are not.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>

#include "backend/tensorrt/session.h"
#include "base/error.h"
#include "bundle/contract.h"
#include "counted_new.h"
#include "decode/decoder_run.h"
#include "double_toys.h"
#include "tensorrt_fixture.h"

using namespace fopru_double;
using fopru::DecoderGraphs;
using fopru::DecoderInfo;
using fopru::DecoderRun;
using fopru::Positions;
using fopru::Rows;

namespace {

using Ids = std::vector<std::int64_t>;

DecoderInfo toy_info() {
    DecoderInfo info;
    info.layers = toy_layers;
    info.kv_heads = 1;
    info.head_dim = toy_head;
    info.hidden_size = toy_hidden;
    info.vocab_size = toy_words;
    info.max_positions = 512;
    return info;
}

// A run over the toy engines, and what was fed to it.
class Answer {
public:
    Answer(const TensorRtTest& test, fopru::Backend& backend)
        : backend_(backend),
          embed_(test.open(backend, TensorRtTest::embed)),
          decoder_(test.open(backend, TensorRtTest::decoder)),
          run(backend, DecoderGraphs{embed_.get(), decoder_.get(), fopru::contract::append}, toy_info()) {}

    void begin(const Ids& prompt, std::int64_t capacity, std::int64_t keep = 0) {
        Positions positions;
        for (std::size_t row = 0; row < prompt.size(); ++row)
            positions.ids.push_back(static_cast<std::int64_t>(row));
        positions.next = static_cast<std::int64_t>(prompt.size());
        run.prepare(capacity, positions, keep);
        fed = prompt;
        std::vector<float> values;
        for (std::size_t row = static_cast<std::size_t>(keep); row < prompt.size(); ++row) {
            for (int at = 0; at < toy_hidden; ++at) values.push_back(toy_weight(1, prompt[row], at));
        }
        Rows rows;
        rows.count = static_cast<std::int64_t>(prompt.size()) - keep;
        rows.width = toy_hidden;
        rows.buffer = backend_.allocate(values.size() * sizeof(float));
        backend_.upload({rows.buffer.get(), fopru::Dtype::float32, {rows.count, toy_hidden}, 0},
                        values.data());
        check(run.prefill(rows));
    }

    void step(std::int64_t token) {
        const std::int64_t before = news_of_backend();
        const float* logits = run.step(token);
        news += news_of_backend() - before;
        fed.push_back(token);
        check(logits);
    }

    void steps(int count) {
        for (int step_of = 0; step_of < count; ++step_of) step((3 * step_of + 1) % toy_words);
    }

private:
    void check(const float* logits) const {
        const std::vector<float> expected = expected_logits(fed);
        // Sums in float, over some hundred rows at most.
        for (std::size_t at = 0; at < toy_words; ++at)
            CHECK(logits[at] == doctest::Approx(expected[at]).epsilon(1e-3));
    }

    fopru::Backend& backend_;
    std::unique_ptr<fopru::Session> embed_, decoder_;

public:
    DecoderRun run;
    Ids fed;
    std::int64_t news = 0;  // how often steps asked for host memory
};

const Ids prompt = {1, 4, 2, 6, 0};

}  // namespace

TEST_CASE_FIXTURE(TensorRtTest, "a step is recorded once, and then allocates nothing") {
    auto backend = fopru::make_tensorrt_backend({});
    Answer answer(*this, *backend);
    answer.begin(prompt, 60);
    CHECK(answer.run.capacity() == 256);  // whole blocks
    answer.run.warm();
    CHECK(device().launches.size() == 1);
    const std::int64_t mallocs = device().counts["cudaMalloc"], runs = device().counts["runs enqueued"];
    device().to_host.clear();
    answer.steps(50);
    CHECK(answer.news == 0);
    CHECK(device().counts["cudaMalloc"] == mallocs);
    CHECK(device().counts["runs enqueued"] == runs);
    CHECK(device().counts["cudaGraphLaunch"] == 50);
    CHECK(device().launches.size() == 1);
    CHECK(device().to_host == std::vector<std::size_t>(50, toy_words * sizeof(float)));
    CHECK(answer.run.refusal().empty());
    CHECK_THROWS_WITH_AS(answer.steps(6),
                         "the KV cache holds 60 positions, but 61 are needed: make the cache for the prompt "
                         "plus max_new_tokens - 1",
                         fopru::RequestError);
}

TEST_CASE_FIXTURE(TensorRtTest, "one recording serves 256 rows, and the next answer") {
    auto backend = fopru::make_tensorrt_backend({});
    Answer answer(*this, *backend);
    answer.begin(prompt, 300);
    answer.steps(270);
    CHECK(device().counts["cudaGraphInstantiateWithFlags"] == 2);
    answer.begin({2, 2, 5}, 300);
    answer.steps(260);
    CHECK(device().counts["cudaGraphInstantiateWithFlags"] == 2);
    CHECK(answer.run.capacity() == 512);
}

TEST_CASE_FIXTURE(TensorRtTest, "rows are kept for another prompt, in a cache that grows") {
    auto backend = fopru::make_tensorrt_backend({});
    Answer answer(*this, *backend);
    answer.begin(prompt, 100);
    answer.steps(80);
    CHECK(answer.run.row_step() == 64);  // rows of 12 bytes
    Ids longer(answer.fed.begin(), answer.fed.begin() + 64);
    longer.insert(longer.end(), {3, 3, 1});
    answer.begin(longer, 120, 64);
    answer.steps(20);
    CHECK(answer.run.capacity() == 256);
    longer.push_back(4);
    answer.begin(longer, 400, 64);  // copied into a larger one
    CHECK(answer.run.capacity() == 512);
    answer.steps(10);
    // Rows that do not begin at a multiple go through memory of the session.
    answer.begin(longer, 400, 54);
    answer.steps(3);
    CHECK(device().launches.size() == 2);
}

TEST_CASE_FIXTURE(TensorRtTest, "steps that cannot be recorded run, and say why") {
    device().unrecordable = true;
    auto backend = fopru::make_tensorrt_backend({});
    Answer answer(*this, *backend);
    answer.begin(prompt, 60);
    CHECK(answer.run.refusal().empty());
    answer.run.warm();
    CHECK_FALSE(answer.run.refusal().empty());
    answer.steps(20);
    CHECK(answer.run.refusal().find("CUDA failed in cudaStreamEndCapture: ") == 0);
    CHECK(device().counts["cudaGraphLaunch"] == 0);
    CHECK(device().launches.empty());
    answer.news = 0;
    answer.steps(20);
    CHECK(answer.news == 0);
}

TEST_CASE_FIXTURE(TensorRtTest, "an oversized cache is let go") {
    auto backend = fopru::make_tensorrt_backend({});
    Answer answer(*this, *backend);
    answer.begin(prompt, 500);
    CHECK(answer.run.capacity() == 512);
    CHECK_FALSE(answer.run.oversized(129));
    CHECK(answer.run.oversized(100));
    answer.begin(prompt, 100);
    CHECK(answer.run.capacity() == 256);
    answer.steps(3);
}

TEST_CASE_FIXTURE(TensorRtTest, "a session takes along what was recorded with it") {
    auto backend = fopru::make_tensorrt_backend({});
    for (const bool lookup : {true, false}) {
        auto first = open(*backend, embed), second = open(*backend, decoder);
        {
            const DecoderGraphs graphs{first.get(), second.get(), fopru::contract::append};
            DecoderRun run(*backend, graphs, toy_info());
            Positions positions;
            positions.ids = {0};
            positions.next = 1;
            run.prepare(9, positions);
            Rows row;
            row.count = 1;
            row.width = toy_hidden;
            row.buffer = backend->allocate(toy_hidden * sizeof(float));
            run.prefill(row);
            run.step(1);
        }
        CHECK(device().launches.size() == 1);
        (lookup ? first : second).reset();  // in either order
        CHECK(device().launches.empty());
    }
}
