// Every call of CUDA and TensorRT that fails is a sentence; and what cannot run is refused before it does.
#include <doctest/doctest.h>

#include "base/error.h"
#include "tensorrt_fixture.h"

using namespace fopru_double;
using fopru::Dtype;
using fopru::Shape;
using fopru::View;

namespace {

// An embedding run that is ready.
struct Ready {
    Ready(const TensorRtTest& test, fopru::Backend& backend)
        : session(test.open(backend, TensorRtTest::embed)),
          ids(put(backend, {1, 2}, std::vector<std::int64_t>{1, 2})),
          rows(hold(backend, Dtype::float32, {1, 2, 4})),
          binding(session->bind()) {
        binding->set_input(0, ids.view);
        binding->set_output(0, rows.view);
    }
    std::unique_ptr<fopru::Session> session;
    Held ids, rows;
    std::unique_ptr<fopru::Binding> binding;
};

}  // namespace

TEST_CASE_FIXTURE(TensorRtTest, "a device that is not there") {
    for (const char* call : {"cudaStreamCreateWithFlags", "cudaGetDevice", "cudaGetDeviceProperties",
                             "cudaRuntimeGetVersion", "cudaDeviceGetAttribute"}) {
        device().failures[call] = {0, cudaErrorNoDevice};
        const std::string error = error_of([] { fopru::make_tensorrt_backend({}); });
        CHECK(error.find("CUDA failed in " + std::string(call) +
                         ": no CUDA-capable device is detected (error 100)") != std::string::npos);
    }
    device().failures["cudaStreamCreateWithFlags"] = {0, cudaErrorNoDevice};
    CHECK(
        error_of([] { fopru::make_tensorrt_backend({}); }) ==
        "backend: tensorrt needs an NVIDIA GPU with its driver (CUDA failed in cudaStreamCreateWithFlags: no "
        "CUDA-capable device is detected (error 100)): use another backend");
    device().failures["createInferRuntime"] = {0, cudaErrorUnknown};
    CHECK(error_of([] { fopru::make_tensorrt_backend({}); }) ==
          "backend: tensorrt cannot start: CUDA initialization failure with error: 35");
}

TEST_CASE_FIXTURE(TensorRtTest, "a CUDA call that fails") {
    auto backend = fopru::make_tensorrt_backend({});
    Held a = hold(*backend, Dtype::float32, {4}), b = hold(*backend, Dtype::float32, {4});
    float values[4] = {};
    backend->download(values, a.view);
    const std::pair<const char*, std::function<void()>> calls[] = {
        {"cudaMemcpyAsync", [&] { backend->upload(a.view, values); }},
        {"cudaMemcpyAsync", [&] { backend->download(values, a.view); }},
        {"cudaMemcpyAsync", [&] { backend->copy(a.view, b.view); }},
        {"cudaStreamSynchronize", [&] { backend->wait(); }},
        {"cudaStreamSynchronize", [&] { backend->download(values, a.view); }},
        {"cudaMalloc", [&] { backend->allocate(12345); }},
        {"cudaMemsetAsync", [&] { backend->allocate(16); }},
        {"cudaMallocHost",
         [&] {
             backend->download(std::vector<float>(70000).data(),
                               hold(*backend, Dtype::float32, {70000}).view);
         }},
    };
    for (const auto& [name, call] : calls) {
        device().failures[name] = {0, cudaErrorUnknown};
        CHECK(error_of(call) ==
              "backend: CUDA failed in " + std::string(name) + ": unknown error (error 999)");
        CHECK(device().last_error == cudaSuccess);  // not left for the next to find
        CHECK(device().failures.empty());
    }
}

TEST_CASE_FIXTURE(TensorRtTest, "a TensorRT call that fails") {
    auto backend = fopru::make_tensorrt_backend({});
    Ready ready(*this, *backend);
    const std::pair<const char*, std::string> calls[] = {
        {"createExecutionContext", "cannot make an execution context for embed_tokens: Context refused."},
        {"setOptimizationProfileAsync", "cannot take profile 0 of embed_tokens: Profile refused."},
        {"setInputShape", "does not take input_ids of shape [1, 2] in embed_tokens: Shape refused."},
        {"setTensorAddress", "does not take input_ids of shape [1, 2] in embed_tokens: Address refused."},
        {"enqueueV3", "failed in embed_tokens: Error Code 1: Cuda Runtime (invalid argument)"},
    };
    for (const auto& [name, words] : calls) {
        device().failures[name] = {0, cudaErrorUnknown};
        CHECK(error_of([&] { ready.binding->run(); }) == "backend: tensorrt " + words);
    }
    ready.rows.view.shape = {1, 2, 4};
    Held other = hold(*backend, Dtype::float32, {1, 2, 4});
    ready.binding->set_output(0, other.view);
    device().failures["setTensorAddress"] = {0, cudaErrorUnknown};
    CHECK(error_of([&] { ready.binding->run(); }) ==
          "backend: tensorrt does not take an address for inputs_embeds in embed_tokens: Address refused.");
    // And all is well again.
    ready.binding->run();
    CHECK(floats(*backend, other.view)[0] == -0.5F);
}

TEST_CASE_FIXTURE(TensorRtTest, "scratch memory that there is not enough of") {
    files[vision] = R"({"toy": "vision", "scratch": 2000000000, "values": {},
        "profiles": [{"pixel_values": [[1, 12, 4], [1, 12, 4], [8, 12, 4]]}]})";
    write_engines();
    auto backend = fopru::make_tensorrt_backend({});
    Ready small(*this, *backend);
    small.binding->run();
    auto session = open(*backend, decoder);
    ToyDecoder run(*backend, *session, 8);
    const std::vector<float> before = run.run({1, 2});

    auto large = open(*backend, vision);
    auto binding = large->bind();
    Held pixels = hold(*backend, Dtype::float32, {1, 12, 4}),
         keep = put(*backend, {1}, std::vector<std::int64_t>{2});
    Held features = hold(*backend, Dtype::float32, {1, 2, 4}), kept = hold(*backend, Dtype::int64, {1, 2});
    Held scores = hold(*backend, Dtype::float32, {1, 12});
    binding->set_input(0, pixels.view);
    binding->set_input(1, keep.view);
    binding->set_output(0, features.view);
    binding->set_output(1, kept.view);
    binding->set_output(2, scores.view);
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: the device has 1023 of 1024 MiB free, but 1908 MiB are needed in one piece: lower the "
          "ratio or "
          "max_new_tokens, or keep less between requests");
    run.forget();
    CHECK(run.run({1, 2}) == before);  // those that were there have theirs again
}

TEST_CASE_FIXTURE(TensorRtTest, "a request that no profile takes") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, embed);
    auto binding = session->bind();
    Held ids = hold(*backend, Dtype::int64, {1, 65}), rows = hold(*backend, Dtype::float32, {1, 65, 4});
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: tensorrt cannot run embed_tokens without input_ids, inputs_embeds: bind them");
    binding->set_input(0, ids.view);
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: tensorrt cannot run embed_tokens without inputs_embeds: bind them");
    binding->set_output(0, rows.view);
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: the engine of embed_tokens was not built for input_ids of shape [1, 65], only for [1, "
          "1]..[1, 64]: "
          "ask for less, or build engines for more with `python -m runtime.engine`");
    View view = ids.view;
    view.shape = {65};
    binding->set_input(0, view);
    CHECK(error_of([&] { binding->run(); }).find("of shape [65], only for") != std::string::npos);
    view.shape = {1, 4};
    binding->set_input(0, view);
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: tensorrt failed in embed_tokens: inputs_embeds comes out as [1, 4, 4], but a view of [1, "
          "65, 4] is "
          "bound");

    auto language = open(*backend, decoder);
    ToyDecoder run(*backend, *language, 600);
    CHECK(error_of([&] { run.run(std::vector<std::int64_t>(17, 1)); })
              .find("a view of 68 values from 0 on does not fit "
                    "its buffer of 64") != std::string::npos);
}

TEST_CASE_FIXTURE(TensorRtTest, "shapes that fit profiles alone but not together") {
    files[embed] = R"({"toy": "copy", "scratch": 0, "tensors": [
        {"name": "a", "type": 0, "dims": [-1], "input": true},
        {"name": "b", "type": 0, "dims": [-1], "input": true},
        {"name": "x", "type": 0, "dims": [-1], "input": false},
        {"name": "y", "type": 0, "dims": [-1], "input": false}],
        "profiles": [{"a": [[1], [1], [1]], "b": [[5], [5], [5]]},
                     {"a": [[5], [5], [5]], "b": [[1], [1], [1]]}]})";
    write_engines();
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, embed);
    auto binding = session->bind();
    Held one = put(*backend, {1}, std::vector<float>{7}), other = put(*backend, {1}, std::vector<float>{8});
    Held x = hold(*backend, Dtype::float32, {1}), y = hold(*backend, Dtype::float32, {1});
    binding->set_input(0, one.view);
    binding->set_input(1, other.view);
    binding->set_output(0, x.view);
    binding->set_output(1, y.view);
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: the engine of embed_tokens was not built for these shapes together (a [1], b [1]): ask "
          "for less, "
          "or build engines for more with `python -m runtime.engine`");
    CHECK(session->greatest(0, 0) == 5);
}

TEST_CASE_FIXTURE(TensorRtTest, "values of a shape tensor") {
    auto backend = fopru::make_tensorrt_backend({});
    auto session = open(*backend, vision);
    auto binding = session->bind();
    Held pixels = hold(*backend, Dtype::float32, {1, 12, 4}),
         keep = put(*backend, {1}, std::vector<std::int64_t>{12});
    Held features = hold(*backend, Dtype::float32, {1, 12, 4}), kept = hold(*backend, Dtype::int64, {1, 12});
    Held scores = hold(*backend, Dtype::float32, {1, 12});
    binding->set_input(0, pixels.view);
    binding->set_input(1, keep.view);
    binding->set_output(0, features.view);
    binding->set_output(1, kept.view);
    binding->set_output(2, scores.view);
    const std::string words =
        ", only for [1]..[11]: ask for less with the graph's own selector, or build engines for more with "
        "`python -m "
        "runtime.engine`";
    CHECK(error_of([&] { binding->run(); }) ==
          "backend: the engine of vision_encoder_fopru was not built for num_keep [12]" + words);
    const std::int64_t none = 0;
    backend->upload(keep.view, &none);
    CHECK(error_of([&] { binding->run(); }).find("num_keep [0]" + words) != std::string::npos);

    const std::string on_device =
        "backend: num_keep of vision_encoder_fopru sizes other tensors and is read on the host, but its "
        "values are on "
        "the device: bind a buffer of at most 256 bytes that `upload` wrote";
    Held large = hold(*backend, Dtype::int64, {100});
    View view = large.view;
    view.shape = {1};
    backend->copy(keep.view, view);  // the host does not know what it holds
    CHECK(error_of([&] { binding->run(); }) == on_device);
    binding->set_input(1, view);
    CHECK(error_of([&] { binding->run(); }) == on_device);
    // What the device writes, the host does not know; what is copied from what it knows, it does.
    Held known = put(*backend, {1}, std::vector<std::int64_t>{3});
    backend->copy(keep.view, known.view);
    binding->set_input(1, keep.view);
    features.view.shape = {1, 3, 4};
    kept.view.shape = {1, 3};
    binding->set_output(0, features.view);
    binding->set_output(1, kept.view);
    binding->run();
    CHECK(integers(*backend, kept.view) == std::vector<std::int64_t>{0, 1, 2});
}

TEST_CASE_FIXTURE(TensorRtTest, "a view that cannot be bound") {
    auto backend = fopru::make_tensorrt_backend({});
    auto other_backend = fopru::make_tensorrt_backend({});
    Ready ready(*this, *backend);
    fopru::Binding& binding = *ready.binding;
    CHECK(error_of([&] { binding.set_input(1, ready.ids.view); }) ==
          "backend: embed_tokens has no tensor at place 1, only input_ids, inputs_embeds");
    CHECK(error_of([&] { binding.set_output(-1, ready.rows.view); }).find("at place -1") !=
          std::string::npos);
    CHECK(error_of([&] { binding.set_input(0, ready.rows.view); }) ==
          "backend: input_ids of embed_tokens is int64, but a buffer of float32 is bound: convert it");
    View view = ready.ids.view;
    view.offset = 8;
    CHECK(error_of([&] { binding.set_input(0, view); }) ==
          "backend: a view of 2 values from 1 on does not fit its buffer of 2");
    view.offset = static_cast<std::size_t>(-8);
    CHECK(error_of([&] { binding.set_input(0, view); }).find("does not fit its buffer") != std::string::npos);
    view = ready.ids.view;
    view.shape = {std::int64_t{1} << 40, std::int64_t{1} << 40};
    CHECK(error_of([&] { binding.set_input(0, view); }).find("whose product has 63 bits") !=
          std::string::npos);
    view.shape = {-1, 2};
    CHECK(error_of([&] { binding.set_input(0, view); }).find("a view has the dim -1,") != std::string::npos);
    view = ready.ids.view;
    view.buffer = nullptr;
    CHECK(error_of([&] { binding.set_input(0, view); }) ==
          "backend: a view has no buffer of the tensorrt backend: use what its `allocate` returned");

    Held foreign = hold(*other_backend, Dtype::int64, {1, 2});
    CHECK(
        error_of([&] { binding.set_input(0, foreign.view); }) ==
        "backend: a view has a buffer of another tensorrt backend: use what this one's `allocate` returned");
    std::int64_t values[2] = {};
    CHECK(error_of([&] { backend->upload(foreign.view, values); }).find("another tensorrt backend") !=
          std::string::npos);
    view = ready.ids.view;
    view.shape = {1};
    CHECK(error_of([&] { backend->copy(ready.ids.view, view); }) ==
          "backend: cannot copy 1 values of int64 into a view of 2 of int64: give as many of the same dtype");
    CHECK(error_of([&] {
              backend->copy(ready.rows.view, ready.ids.view);
          }).find("of int64 into a view of 8 of float32") != std::string::npos);
}

TEST_CASE_FIXTURE(TensorRtTest, "a device that has failed") {
    auto backend = fopru::make_tensorrt_backend({});
    Ready ready(*this, *backend);
    ready.binding->run();
    device().broken = cudaErrorIllegalAddress;
    CHECK(error_of([&] { backend->wait(); }) ==
          "backend: CUDA failed in cudaStreamSynchronize: an illegal memory access was encountered (error "
          "700)");
    CHECK(error_of([&] { floats(*backend, ready.rows.view); }).find("error 700") != std::string::npos);
    CHECK(error_of([&] { ready.binding->run(); }) ==
          "backend: tensorrt failed in embed_tokens: The device has failed.");
}
