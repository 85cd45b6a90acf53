#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "backend/ort/cuda_memory.h"
#include "backend/ort/ort_backend.h"
#include "base/error.h"
#include "bundle/contract.h"
#include "ort_toy.h"

using namespace fopru;
using namespace fopru::toy;

namespace {

BackendOptions one_thread() {
    BackendOptions options;
    options.threads = 1;
    return options;
}

const char* const embed_file = "bundle_v3/onnx/embed_tokens.onnx";

// Embeddings of token ids through a binding.
std::vector<float> embedded(Backend& backend, Session& session, const std::vector<std::int64_t>& ids) {
    const std::int64_t length = static_cast<std::int64_t>(ids.size()),
                       width = session.outputs()[0].shape.back();
    const auto in = backend.allocate(ids.size() * 8);
    const auto out = backend.allocate(static_cast<std::size_t>(length * width) * 4);
    const View tokens{in.get(), Dtype::int64, {1, length}, 0};
    const View rows{out.get(), Dtype::float32, {1, length, width}, 0};
    backend.upload(tokens, ids.data());
    const auto binding = session.bind();
    binding->set_input(session.input(contract::input_ids), tokens);
    binding->set_output(session.output(contract::inputs_embeds), rows);
    binding->run();
    std::vector<float> values(static_cast<std::size_t>(length * width));
    backend.wait();
    backend.download(values.data(), rows);
    return values;
}

std::string message_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const BackendError& error) {
        return error.what();
    }
    return "";
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("ort: a graph says its tensors, runs, and runs again where bindings moved") {
    const auto found = library();
    if (found == nullptr) return;
    ort::OrtBackend backend(found, ort::make_cpu_device(), one_thread());
    const auto session = backend.open(contract::embed_tokens, frozen(embed_file));
    REQUIRE(session->inputs().size() == 1);
    CHECK(session->inputs()[0].dtype == Dtype::int64);
    CHECK(session->inputs()[0].shape == std::vector<std::int64_t>{-1, -1});
    CHECK(session->outputs()[0].dtype == Dtype::float32);
    CHECK(session->input("nothing") == -1);
    const auto both = embedded(backend, *session, {5, 9});
    const auto first = embedded(backend, *session, {5}), second = embedded(backend, *session, {9});
    auto joined = first;
    joined.insert(joined.end(), second.begin(), second.end());
    CHECK(both == joined);
    CHECK(first != second);
}

TEST_CASE("ort: a device of its own is read by copies, and its nodes are counted") {
    const auto found = library();
    if (found == nullptr) return;
    ort::OrtBackend host(found, ort::make_cpu_device(), one_thread());
    ort::OrtBackend device(found, std::make_unique<CpuAsDevice>(), one_thread());
    const auto one = host.open(contract::embed_tokens, frozen(embed_file));
    const auto other = device.open(contract::embed_tokens, frozen(embed_file));
    CHECK(embedded(host, *one, {1, 2, 3}) == embedded(device, *other, {1, 2, 3}));
    if (found->api().placement == nullptr) return;
    ort::OrtBackend absent(found, std::make_unique<CpuAsDevice>("OtherExecutionProvider"), one_thread());
    const std::string message = message_of([&] { absent.open(contract::embed_tokens, frozen(embed_file)); });
    CHECK(holds(message,
                "ort-test opened embed_tokens, but OtherExecutionProvider took none of its nodes "
                "(CPUExecutionProvider has "));
}

TEST_CASE("ort: sessions run in two threads, each with its binding") {
    const auto found = library();
    if (found == nullptr) return;
    ort::OrtBackend backend(found, ort::make_cpu_device(), one_thread());
    const auto session = backend.open(contract::embed_tokens, frozen(embed_file));
    const auto wanted = embedded(backend, *session, {4, 7});
    int right[2] = {0, 0};
    const auto work = [&](int place) {
        for (int turn = 0; turn < 50; ++turn) right[place] += embedded(backend, *session, {4, 7}) == wanted;
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    CHECK(right[0] == 50);
    CHECK(right[1] == 50);
}

TEST_CASE("ort: refusals are sentences") {
    const auto found = library();
    if (found == nullptr) return;
    ort::OrtBackend backend(found, ort::make_cpu_device(), one_thread());
    const auto session = backend.open(contract::embed_tokens, frozen(embed_file));
    const auto buffer = backend.allocate(64);
    const auto binding = session->bind();
    const View ids{buffer.get(), Dtype::int64, {1, 1}, 0};
    CHECK(holds(message_of([&] { backend.open("x", frozen("none.onnx")); }), "onnxruntime cannot load "));
    CHECK(holds(message_of([&] { backend.open("x", frozen("none_bf16.onnx")); }),
                "none_bf16.onnx is in bfloat16, for which onnxruntime has no kernels: run it with --backend "
                "tensorrt"));
    CHECK(holds(message_of([&] { binding->set_input(3, ids); }),
                "cannot bind tensor 3 of embed_tokens, which has 1"));
    CHECK(holds(message_of([&] { binding->set_input(0, {buffer.get(), Dtype::float32, {1, 1}, 0}); }),
                "onnxruntime cannot bind input_ids of embed_tokens: got float32, which is not its dtype"));
    CHECK(holds(message_of([&] { binding->set_input(0, {buffer.get(), Dtype::int64, {1, 9}, 0}); }),
                "a view of 9 values of int64 from byte 0 on does not fit its buffer of 64 bytes"));
    CHECK(holds(message_of([&] { binding->set_input(0, {buffer.get(), Dtype::int64, {1, 1}, 57}); }),
                "from byte 57 on does not fit"));
    CHECK(holds(message_of([&] { binding->set_input(0, {buffer.get(), Dtype::int64, {1, -1}, 0}); }),
                "a tensor has a dim of -1"));
    CHECK(holds(message_of([&] { binding->set_input(0, {nullptr, Dtype::int64, {1, 1}, 0}); }),
                "does not fit"));
    const std::int64_t large = std::numeric_limits<std::int64_t>::max() / 2;
    CHECK(holds(message_of([&] { binding->set_input(0, {buffer.get(), Dtype::int64, {large, large}, 0}); }),
                "makes it too large"));
    binding->set_output(0, {buffer.get(), Dtype::float32, {1, 1, 1}, 0});
    CHECK(holds(message_of([&] { binding->run(); }), "onnxruntime failed in embed_tokens: "));  // no input
    binding->set_input(0, ids);
    CHECK(holds(message_of([&] { binding->run(); }),
                "onnxruntime failed in embed_tokens: "));  // a wrong output
    CHECK(holds(message_of([&] { backend.copy({buffer.get(), Dtype::int64, {2}, 0}, ids); }),
                "cannot copy 1 values of int64 into a view of 2 of int64: give as many of the same dtype"));
    CHECK(holds(message_of([&] { backend.upload({buffer.get(), Dtype::int64, {9}, 0}, nullptr); }),
                "does not fit"));
    CHECK(holds(message_of([&] { backend.allocate(std::numeric_limits<std::size_t>::max() - 3); }),
                "onnxruntime cannot allocate "));
    BackendOptions half;
    half.cache_dtype = "bfloat16";
    const ort::OrtBackend bfloat(found, ort::make_cpu_device(), half);
    CHECK(holds(message_of([&] { bfloat.cache_kinds(); }), "the decoder's KV cache is in bfloat16"));
}

TEST_CASE("ort: a damaged graph is an error") {
    const auto found = library();
    if (found == nullptr) return;
    ort::OrtBackend backend(found, ort::make_cpu_device(), one_thread());
    CHECK(holds(message_of([&] { backend.open("x", frozen("bundle_v3/bundle.json")); }),
                "onnxruntime cannot load "));
}

namespace {

// libcudart in the host's memory. Counts, and fails where it is told to.
struct Cuda {
    static int fails, copies, fills, live, waits;
    static ort::CudaMemory memory() {
        fails = copies = fills = live = waits = 0;
        auto made = std::make_shared<ort::Cudart>();
        made->allocate = [](void** data, std::size_t bytes) {
            if (fails != 0) return fails;
            *data = std::malloc(bytes);
            std::memset(*data, 0xCD, bytes);
            ++live;
            return 0;
        };
        made->free = [](void* data) {
            std::free(data);
            --live;
            return 0;
        };
        made->copy = [](void* target, const void* source, std::size_t bytes, int direction) {
            CHECK(direction == 4);  // cudaMemcpyDefault
            std::memcpy(target, source, bytes);
            ++copies;
            return fails;
        };
        made->fill = [](void* data, int value, std::size_t bytes) {
            std::memset(data, value, bytes);
            ++fills;
            return fails;
        };
        made->wait = [](void*) {
            ++waits;
            return 0;
        };
        made->memory = [](std::size_t* free, std::size_t* total) {
            *free = 5;
            *total = 9;
            return fails;
        };
        made->message = [](int code) { return code == 2 ? "out of memory" : "unknown"; };
        return ort::CudaMemory(made);
    }
};
int Cuda::fails, Cuda::copies, Cuda::fills, Cuda::live, Cuda::waits;

}  // namespace

TEST_CASE("cuda memory: zeroed, copied and waited for, freed, and its errors said") {
    const ort::CudaMemory memory = Cuda::memory();
    {
        const auto buffer = memory.allocate(16, "ort-cuda");
        CHECK(Cuda::live == 1);
        CHECK(Cuda::fills == 1);
        CHECK(Cuda::waits == 1);
        CHECK(buffer->bytes() == 16);
        CHECK(static_cast<char*>(buffer->data())[15] == 0);
        const std::int64_t number = 7;
        memory.copy(buffer->data(), &number, 8);
        CHECK(Cuda::waits == 2);
        CHECK(*static_cast<std::int64_t*>(buffer->data()) == 7);
        CHECK(memory.allocate(0, "ort-cuda")->data() != nullptr);
    }
    CHECK(Cuda::live == 0);
    CHECK(memory.free_bytes() == 5);
    Cuda::fails = 2;
    CHECK(message_of([&] { memory.allocate(8, "ort-cuda"); }) ==
          "ort-cuda cannot allocate 8 bytes on the device (out of memory): free memory there, or lower the "
          "ratio or "
          "max_new_tokens");
    std::int64_t from = 1, to = 0;
    CHECK(message_of([&] { memory.copy(&to, &from, 8); }) == "cudaMemcpy failed: out of memory");
    CHECK(message_of([&] { memory.free_bytes(); }) == "cudaMemGetInfo failed: out of memory");
    CHECK(Cuda::live == 0);
}
