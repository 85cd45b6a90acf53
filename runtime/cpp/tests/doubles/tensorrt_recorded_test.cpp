// Decoding steps recorded as CUDA graphs, with a past that is bound longer than it is.
#include <doctest/doctest.h>

#include <algorithm>

#include "backend/tensorrt/recorded.h"
#include "double_toys.h"
#include "tensorrt_fixture.h"

using namespace fopru_double;
using fopru::Dtype;
using fopru::Replay;
using fopru::Shape;
using fopru::TrtBinding;
using fopru::TrtSession;
using fopru::View;

namespace {

constexpr std::int64_t block = 64;
constexpr std::size_t row_bytes = toy_head * sizeof(float), pitch = 256;
constexpr int tensors = 2 * toy_layers;

TrtBinding* own(const std::unique_ptr<fopru::Binding>& binding) {
    auto* found = dynamic_cast<TrtBinding*>(binding.get());
    REQUIRE(found != nullptr);
    return found;
}

// Lookup and decoder of one token with shapes that stay: the mask hides what is behind the valid rows of a
// past of 64, and the new rows come out beside the cache.
class Steps {
public:
    Steps(const TensorRtTest& test, fopru::Backend& backend)
        : backend_(backend),
          embed_(test.open(backend, TensorRtTest::embed)),
          decoder_(test.open(backend, TensorRtTest::decoder)),
          token_(hold(backend, Dtype::int64, {1, 1})),
          embedding_(hold(backend, Dtype::float32, {1, 1, toy_hidden})),
          mask_(hold(backend, Dtype::int64, {1, block + 1})),
          position_(hold(backend, Dtype::int64, {1, 1})),
          count_(put(backend, {}, std::vector<std::int64_t>{1})),
          cache_(hold(backend, Dtype::float32, {tensors, block, 1, toy_head})),
          new_(hold(backend, Dtype::float32, {tensors * static_cast<std::int64_t>(pitch / sizeof(float))})),
          logits_(hold(backend, Dtype::float32, {1, 1, toy_words})) {}

    std::unique_ptr<Replay> record() {
        lookup_ = embed_->bind();
        lookup_->set_input(0, token_.view);
        lookup_->set_output(0, embedding_.view);
        step_ = decoder_->bind();
        set_input(*decoder_, *step_, "inputs_embeds", embedding_.view);
        set_input(*decoder_, *step_, "attention_mask", mask_.view);
        set_input(*decoder_, *step_, "position_ids", position_.view);
        set_input(*decoder_, *step_, "num_logits_to_keep", count_.view);
        set_output(*decoder_, *step_, "logits", logits_.view);
        std::size_t place = 0;
        for (int layer = 0; layer < toy_layers; ++layer) {
            for (const char* part : {"key", "value"}) {
                const std::string name = std::to_string(layer) + "." + part;
                View past = cache_.view, present = new_.view;
                past.shape = {1, block, 1, toy_head};
                past.offset = place * block * row_bytes;
                present.shape = {1, 1, 1, toy_head};
                present.offset = place++ * pitch;
                set_input(*decoder_, *step_, "past_key_values." + name, past);
                set_output(*decoder_, *step_, "present." + name, present);
            }
        }
        return std::make_unique<Replay>(std::vector<TrtBinding*>{own(lookup_), own(step_)});
    }

    std::vector<float> run(Replay& replay, std::int64_t token) {
        std::vector<std::int64_t> mask(block + 1, 0);
        std::fill(mask.begin(), mask.begin() + length_, 1);
        mask.back() = 1;
        backend_.upload(mask_.view, mask.data());
        backend_.upload(token_.view, &token);
        backend_.upload(position_.view, &length_);
        replay.run();
        auto& cuda = dynamic_cast<TrtSession&>(*decoder_).device().cuda;
        auto* behind =
            static_cast<char*>(cache_.buffer->data()) + static_cast<std::size_t>(length_) * row_bytes;
        cuda.copy_rows({behind, block * row_bytes}, {new_.buffer->data(), pitch}, row_bytes, tensors);
        ++length_;
        return floats(backend_, logits_.view);
    }

    void forget() { length_ = 0; }
    void bind_misaligned() {
        View past = cache_.view;
        past.shape = {1, block, 1, toy_head};
        past.offset = row_bytes;
        set_input(*decoder_, *step_, "past_key_values.0.key", past);
    }
    std::vector<TrtBinding*> bindings() const { return {own(lookup_), own(step_)}; }

private:
    fopru::Backend& backend_;
    std::unique_ptr<fopru::Session> embed_, decoder_;
    Held token_, embedding_, mask_, position_, count_, cache_, new_, logits_;
    std::unique_ptr<fopru::Binding> lookup_, step_;
    std::int64_t length_ = 0;
};

void check_steps(Steps& steps, Replay& replay, int count) {
    std::vector<std::int64_t> tokens;
    for (int step = 0; step < count; ++step) {
        tokens.push_back((3 * step + 1) % toy_words);
        const std::vector<float> got = steps.run(replay, tokens.back()), expected = expected_logits(tokens);
        // Sums in float, over at most 50 rows.
        for (std::size_t at = 0; at < toy_words; ++at)
            CHECK(got[at] == doctest::Approx(expected[at]).epsilon(1e-4));
    }
}

}  // namespace

TEST_CASE_FIXTURE(TensorRtTest, "steps are recorded once and launched") {
    auto backend = fopru::make_tensorrt_backend({});
    Steps steps(*this, *backend);
    auto replay = steps.record();
    CHECK(replay->refusal().empty());
    const std::int64_t enqueued = device().counts["runs enqueued"];
    device().to_host.clear();
    check_steps(steps, *replay, 50);
    CHECK(device().counts["cudaGraphLaunch"] == 50);
    CHECK(device().counts["runs enqueued"] == enqueued);
    CHECK(device().to_host == std::vector<std::size_t>(50, toy_words * sizeof(float)));

    // A later answer finds the same run.
    auto again = steps.record();
    steps.forget();
    check_steps(steps, *again, 3);
    CHECK(device().counts["cudaStreamBeginCapture"] == 1);
}

TEST_CASE_FIXTURE(TensorRtTest, "a run that was recorded with another scratch block is not used") {
    files[vision] = R"({"toy": "copy", "scratch": 900000, "profiles": [{}], "tensors": [
        {"name": "x", "type": 0, "dims": [1], "input": true},
        {"name": "y", "type": 0, "dims": [1], "input": false}]})";
    write_engines();
    auto backend = fopru::make_tensorrt_backend({});
    Steps steps(*this, *backend);
    auto replay = steps.record();
    check_steps(steps, *replay, 2);
    steps.forget();
    auto session = open(*backend, vision);
    auto binding = session->bind();
    Held x = put(*backend, {1}, std::vector<float>{1}), y = hold(*backend, Dtype::float32, {1});
    binding->set_input(0, x.view);
    binding->set_output(0, y.view);
    binding->run();
    check_steps(steps, *replay, 5);
    CHECK(device().counts["cudaStreamBeginCapture"] == 2);
}

TEST_CASE_FIXTURE(TensorRtTest, "what cannot be recorded runs plainly, and says why") {
    auto backend = fopru::make_tensorrt_backend({});
    Steps steps(*this, *backend);
    SUBCASE("CUDA refuses") {
        device().unrecordable = true;
        auto replay = steps.record();
        CHECK(replay->refusal() ==
              "CUDA failed in cudaStreamEndCapture: operation failed due to a previous error during "
              "capture (error 901)");
        check_steps(steps, *replay, 5);
    }
    SUBCASE("TensorRT refuses") {
        device().failures["enqueueV3"] = {2, cudaErrorUnknown};  // both run once, and then are recorded
        auto replay = steps.record();
        CHECK(replay->refusal() ==
              "tensorrt failed in embed_tokens: Error Code 1: Cuda Runtime (invalid argument)");
        check_steps(steps, *replay, 5);
    }
    SUBCASE("it cannot be made") {
        device().failures["cudaGraphInstantiateWithFlags"] = {0, cudaErrorUnknown};
        auto replay = steps.record();
        CHECK(replay->refusal().find("CUDA failed in cudaGraphInstantiateWithFlags: unknown error") == 0);
        check_steps(steps, *replay, 5);
    }
    SUBCASE("a launch fails") {
        auto replay = steps.record();
        device().failures["cudaGraphLaunch"] = {0, cudaErrorUnknown};
        CHECK(error_of([&] { replay->run(); }) ==
              "backend: CUDA failed in cudaGraphLaunch: unknown error (error 999)");
    }
    CHECK(device().graphs.empty());
}

TEST_CASE_FIXTURE(TensorRtTest, "what cannot run cannot be recorded") {
    auto backend = fopru::make_tensorrt_backend({}), other = fopru::make_tensorrt_backend({});
    Steps steps(*this, *backend), foreign(*this, *other);
    auto replay = steps.record();
    auto theirs = foreign.record();
    CHECK(error_of([] { Replay({}); }) == "backend: nothing is given to record: give one binding or more");
    CHECK(error_of([&] { Replay({steps.bindings()[0], foreign.bindings()[1]}); }) ==
          "backend: bindings of two backends cannot be recorded together: give those of one");
    steps.bind_misaligned();
    CHECK(error_of([&] { Replay(steps.bindings()); }) ==
          "backend: past_key_values.0.key of decoder_model_portable begins 12 bytes behind a multiple of "
          "256, where "
          "TensorRT takes no tensor: bind a view that begins at one");
}

TEST_CASE_FIXTURE(TensorRtTest, "a recorded run has its tensors where TensorRT takes them") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, embed);
    auto binding = session->bind();
    Held ids = put(*backend, {1, 9}, std::vector<std::int64_t>(9, 1));
    Held rows = hold(*backend, Dtype::float32, {1, 9, toy_hidden});
    View id = ids.view, row = rows.view;
    id.shape = {1, 1};
    row.shape = {1, 1, toy_hidden};
    row.offset = 32;
    binding->set_input(0, id);
    binding->set_output(0, row);
    CHECK(error_of([&] { Replay({own(binding)}); }) ==
          "backend: inputs_embeds of embed_tokens begins 32 bytes behind a multiple of 256, where TensorRT "
          "takes no "
          "tensor: bind a view that begins at one");
    CHECK(error_of([&] {
              Replay({own(session->bind())});
          }).find("without input_ids, inputs_embeds: bind them") != std::string::npos);
    binding->run();  // plainly, it goes through memory of the session
}

TEST_CASE_FIXTURE(TensorRtTest, "recorded runs are kept by their places and values, 32 of them") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, vision);
    auto binding = session->bind();
    Held pixels = hold(*backend, Dtype::float32, {1, toy_tokens, toy_hidden}),
         keep = hold(*backend, Dtype::int64, {1});
    Held scores = hold(*backend, Dtype::float32, {1, toy_tokens});
    const auto record = [&](std::int64_t count) {
        backend->upload(keep.view, &count);
        Held features = hold(*backend, Dtype::float32, {1, count, toy_hidden});
        Held kept = hold(*backend, Dtype::int64, {1, count});
        binding->set_input(0, pixels.view);
        binding->set_input(1, keep.view);
        binding->set_output(0, features.view);
        binding->set_output(1, kept.view);
        binding->set_output(2, scores.view);
        Replay({own(binding)}).run();
        CHECK(integers(*backend, kept.view).size() == static_cast<std::size_t>(count));
    };
    for (int round = 0; round < 3; ++round) {
        for (std::int64_t count = 1; count <= 11; ++count) record(count);
    }
    CHECK(device().counts["cudaStreamBeginCapture"] ==
          11);  // the pool gives the same memory for the same sizes
    std::vector<Held> occupied;
    for (int round = 0; round < 5; ++round) {
        for (std::int64_t count = 1; count <= 11; ++count) record(count);
        occupied.push_back(hold(*backend, Dtype::float32, {1}));  // so that the next has other addresses
        occupied.push_back(hold(*backend, Dtype::float32, {1}));
    }
    CHECK(device().launches.size() == 32);
    CHECK(device().counts["contexts"] == 32);
}
