// Of the calls of `operator new` in a step, those inside ONNX Runtime's functions are told from those of our
// code: the functions are wrapped to say what was asked for while they were under way.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "allocation_count.h"
#include "backend/ort/ort_backend.h"
#include "bundle/bundle.h"
#include "bundle/contract.h"
#include "decode/decoder_run.h"
#include "fake_decoder.h"
#include "ort_toy.h"

using namespace fopru;

namespace {

constexpr int steps = 30;

// ONNX Runtime's own functions, which the wrappers of a step call.
ort::Api real;

std::size_t inside = 0;  // allocations of ONNX Runtime's functions

struct Guard {
    Guard() : before(tests::allocations()) {}
    ~Guard() { inside += tests::allocations() - before; }
    std::size_t before;
};

struct Allocations {
    std::size_t own, theirs;
};

template <class Call>
Allocations count(const Call& call) {
    inside = 0;
    const std::size_t before = tests::allocations();
    call();
    return {tests::allocations() - before - inside, inside};
}

std::shared_ptr<const ort::Library> guarded(const ort::Library& library) {
    real = library.api();
    ort::Api api = real;
    api.run = [](ort::SessionHandle* session, const ort::RunOptions* options, const char* const* inputs,
                 const ort::Value* const* values, std::size_t size, const char* const* outputs,
                 std::size_t count, ort::Value** made) {
        const Guard guard;
        return real.run(session, options, inputs, values, size, outputs, count, made);
    };
    api.create_tensor = [](const ort::MemoryInfo* info, void* data, std::size_t bytes,
                           const std::int64_t* dims, std::size_t rank, int element, ort::Value** made) {
        const Guard guard;
        return real.create_tensor(info, data, bytes, dims, rank, element, made);
    };
    api.release_value = [](ort::Value* value) {
        const Guard guard;
        real.release_value(value);
    };
    return std::make_shared<ort::Library>(api, library.path(), library.version());
}

Positions positions_of(std::int64_t length) {
    Positions positions;
    for (std::int64_t row = 0; row < length; ++row) positions.ids.push_back(row);
    positions.next = length;
    return positions;
}

Allocations of_steps(Backend& backend, const DecoderGraphs& graphs, const DecoderInfo& info) {
    DecoderRun run(backend, graphs, info);
    run.prepare(10 + steps, positions_of(10));
    Rows rows;
    rows.count = 10;
    rows.width = info.hidden_size;
    rows.buffer = backend.allocate(static_cast<std::size_t>(rows.count * rows.width) * sizeof(float));
    run.prefill(rows);
    float sum = 0;
    const Allocations counts = count([&] {
        for (std::int64_t token = 0; token < steps; ++token) sum += run.step(token % 5)[0];
    });
    CHECK(sum == sum);  // a number, and the logits are read
    return counts;
}

}  // namespace

TEST_CASE("decoder run: allocations are told apart") {
    const Allocations counts = count([] { ::operator delete(::operator new(3)); });
    CHECK(counts.own == 1);
    CHECK(counts.theirs == 0);
    const Allocations theirs = count([] {
        const Guard guard;
        ::operator delete(::operator new(3));
    });
    CHECK(theirs.own == 0);
    CHECK(theirs.theirs == 1);
}

TEST_CASE("decoder run: a step allocates nothing") {
    for (const char* kind : {contract::shared, contract::append, contract::concat}) {
        for (const bool device : {false, true}) {
            CAPTURE(kind);
            fake::FakeBackend backend(device);
            fake::FakeSession embed = fake::toy_embed(), decoder = fake::toy_decoder(kind);
            // The toy's own sums go through vectors and names, so they are left out.
            std::size_t start = 0;
            for (fake::FakeSession* session : {&embed, &decoder}) {
                session->before = [&start] { start = tests::allocations(); };
                session->after = [&start] { inside += tests::allocations() - start; };
            }
            const Allocations counts = of_steps(backend, {&embed, &decoder, kind}, fake::toy_info());
            CHECK(counts.own == 0);
            CHECK(counts.theirs > 0);
        }
    }
}

TEST_CASE("ort: a step allocates nothing of ours") {
    const auto found = toy::library();
    if (found == nullptr) return;
    const auto library = guarded(*found);
    BackendOptions options;
    options.threads = 1;
    for (const char* name : {"bundle_v2", "bundle_v3", "bundle_v3_q4"}) {
        const auto bundle = Bundle::open(toy::frozen(name), false);
        const DecoderInfo& info = bundle->manifest().decoder;
        for (const auto& entry : info.caches) {
            const std::string &graph = entry.first, &kind = entry.second;
            for (const bool device : {false, true}) {
                std::unique_ptr<ort::Device> where = ort::make_cpu_device();
                if (device) where = std::make_unique<toy::CpuAsDevice>();
                ort::OrtBackend backend(library, std::move(where), options);
                const auto embed = backend.open("embed", bundle->graph_file(contract::embed_tokens));
                const auto decoder = backend.open(graph, bundle->graph_file(graph));
                const Allocations counts = of_steps(backend, {embed.get(), decoder.get(), kind}, info);
                CAPTURE(std::string(name));
                CAPTURE(kind);
                CHECK(counts.own == 0);
                CHECK(counts.theirs > 0);  // else the wrappers are not the functions that run
                MESSAGE(std::string(name)
                        << ", cache " << kind << ", " << steps << " steps: " << counts.own
                        << " allocations of ours, " << counts.theirs << " inside ONNX Runtime");
            }
        }
    }
}
