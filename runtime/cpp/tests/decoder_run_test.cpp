#include "decode/decoder_run.h"

#include <doctest/doctest.h>

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "fake_decoder.h"

using namespace fopru;
using namespace fopru::fake;

namespace {

using Ids = std::vector<std::int64_t>;
using Logits = std::vector<float>;

const char* const kinds[] = {contract::shared, contract::append, contract::concat};

// A run with its graphs.
struct Toy {
    explicit Toy(const std::string& kind, int axes = 1, bool device = false)
        : backend(device),
          embed(toy_embed()),
          decoder(toy_decoder(kind)),
          run(backend, {&embed, &decoder, kind}, toy_info(axes)),
          axes(axes) {}

    Positions positions(std::int64_t length, std::int64_t next = -1) const {
        Positions made;
        made.axes = axes;
        for (int axis = 0; axis < axes; ++axis) {
            for (std::int64_t row = 0; row < length; ++row) made.ids.push_back(row + axis * 2);
        }
        made.next = next < 0 ? length : next;
        return made;
    }
    Rows rows(const Ids& ids, std::int64_t before = 0) {  // `before`: numbers in the buffer ahead of the rows
        Rows made;
        made.count = static_cast<std::int64_t>(ids.size());
        made.width = 6;
        made.offset = static_cast<std::size_t>(before) * sizeof(float);
        made.buffer = backend.allocate(ids.size() * 24 + made.offset);
        for (std::size_t row = 0; row < ids.size(); ++row) {
            const auto own = toy_embedding(ids[row]);
            std::memcpy(static_cast<char*>(made.buffer->data()) + made.offset + row * 24, own.data(), 24);
        }
        return made;
    }
    Logits copied(const float* logits) const { return {logits, logits + 11}; }

    FakeBackend backend;
    FakeSession embed, decoder;
    DecoderRun run;
    int axes;
};

Ids some_ids(std::int64_t length, std::int64_t seed = 0) {
    Ids ids;
    for (std::int64_t at = 0; at < length; ++at) ids.push_back((at * 31 + seed * 7) % 97);
    return ids;
}

// Logits of the last row of a prompt in a run of its own. `positions` beyond the prompt are those of later
// tokens.
Logits whole(const std::string& kind, const Ids& ids, const Positions& positions) {
    Toy toy(kind, positions.axes);
    toy.run.prepare(static_cast<std::int64_t>(ids.size()), positions);
    return toy.copied(toy.run.prefill(toy.rows(ids)));
}

Positions longer(Positions positions, std::int64_t steps) {
    const std::int64_t length = positions.length();
    Ids ids;
    for (int axis = 0; axis < positions.axes; ++axis) {
        for (std::int64_t row = 0; row < length + steps; ++row) {
            ids.push_back(row < length ? positions.ids[static_cast<std::size_t>(axis * length + row)]
                                       : positions.next + row - length);
        }
    }
    positions.ids = ids;
    return positions;
}

}  // namespace

TEST_CASE("decoder run: prefill and steps equal one long prefill") {
    for (const char* kind : kinds) {
        for (const int axes : {1, 3}) {
            for (const bool device : {false, true}) {
                CAPTURE(kind);
                CAPTURE(axes);
                Toy toy(kind, axes, device);
                Ids ids = some_ids(9);
                const Positions positions = toy.positions(9, 20);
                toy.run.prepare(14, positions);
                CHECK(toy.copied(toy.run.prefill(toy.rows(ids, 5))) == whole(kind, ids, positions));
                for (std::int64_t step = 0; step < 5; ++step) {
                    const std::int64_t token = 40 + step;
                    ids.push_back(token);
                    CHECK(toy.copied(toy.run.step(token)) == whole(kind, ids, longer(positions, step + 1)));
                }
                CHECK(toy.run.length() == 14);
            }
        }
    }
}

TEST_CASE("decoder run: a long prompt goes in chunks, with its positions") {
    const Ids ids = some_ids(2 * prefill_rows + 3);
    for (const char* kind : kinds) {
        for (const int axes : {1, 3}) {
            CAPTURE(kind);
            CAPTURE(axes);
            Toy toy(kind, axes);
            const std::int64_t length = static_cast<std::int64_t>(ids.size());
            const Positions positions = toy.positions(length);
            toy.run.prepare(length + 1, positions);
            const Logits logits = toy.copied(toy.run.prefill(toy.rows(ids)));
            CHECK(toy.decoder.runs == 3);
            // The same prompt by steps alone.
            Toy slow(kind, axes);
            Positions first = slow.positions(1);
            first.next = 1;
            if (axes == 1) {
                slow.run.prepare(length, first);
                slow.run.prefill(slow.rows({ids[0]}));
                const float* last = nullptr;
                for (std::size_t at = 1; at < ids.size(); ++at) last = slow.run.step(ids[at]);
                CHECK(slow.copied(last) == logits);
            }
        }
    }
}

TEST_CASE("decoder run: kept rows serve another prompt, in a larger cache too") {
    for (const char* kind : kinds) {
        for (const std::int64_t keep : {1, 4, 8}) {
            for (const std::int64_t capacity : {12, 40}) {
                CAPTURE(kind);
                CAPTURE(keep);
                CAPTURE(capacity);
                Toy toy(kind, 3);
                const Ids ids = some_ids(9);
                toy.run.prepare(14, toy.positions(9));
                toy.run.prefill(toy.rows(ids));
                toy.run.step(50);
                Ids other(ids.begin(), ids.begin() + keep);
                for (const std::int64_t id : some_ids(12 - keep, 3)) other.push_back(id);
                const Positions positions = toy.positions(12, 30);
                toy.run.prepare(capacity, positions, keep);
                CHECK(toy.run.length() == keep);
                CHECK(toy.run.capacity() == std::max<std::int64_t>(14, capacity));
                const Ids rest(other.begin() + keep, other.end());
                CHECK(toy.copied(toy.run.prefill(toy.rows(rest))) == whole(kind, other, positions));
                if (capacity > 12) {
                    other.push_back(60);
                    CHECK(toy.copied(toy.run.step(60)) == whole(kind, other, longer(positions, 1)));
                }
            }
        }
    }
}

TEST_CASE(
    "decoder run: a fresh answer takes the cache of the last, but not one of more than twice its size") {
    for (const char* kind : kinds) {
        CAPTURE(kind);
        Toy toy(kind);
        toy.run.prepare(40, toy.positions(30));
        toy.run.prefill(toy.rows(some_ids(30)));
        const std::uint64_t bytes = toy.run.allocated_bytes();
        CHECK(bytes == (kind == std::string(contract::concat) ? 2 : 1) * cache_bytes(toy_info(), 40));
        toy.run.prepare(20, toy.positions(9));
        CHECK(toy.run.capacity() == 40);
        CHECK(toy.copied(toy.run.prefill(toy.rows(some_ids(9, 2)))) ==
              whole(kind, some_ids(9, 2), toy.positions(9)));
        toy.run.prepare(19, toy.positions(9));
        CHECK(toy.run.capacity() == 19);
        CHECK(toy.copied(toy.run.prefill(toy.rows(some_ids(9, 4)))) ==
              whole(kind, some_ids(9, 4), toy.positions(9)));
    }
}

TEST_CASE("decoder run: bound once where past and present are the same memory") {
    Toy toy(contract::shared);
    toy.run.prepare(40, toy.positions(4));
    toy.run.prefill(toy.rows(some_ids(4)));
    toy.run.prepare(40, toy.positions(4));
    CHECK(toy.decoder.bindings == 1);
    CHECK(toy.embed.bindings == 1);
}

TEST_CASE("decoder run: refusals") {
    Toy toy(contract::append);
    const auto fails = [&](auto&& call, const std::string& words) {
        CAPTURE(words);
        std::string message;
        try {
            call();
        } catch (const RequestError& error) {
            message = error.what();
        }
        CHECK(message.find(words) != std::string::npos);
    };
    fails([&] { toy.run.step(1); }, "the cache has 0 rows of a prompt of 0: prefill first");
    fails([&] { toy.run.prefill(toy.rows({1})); },
          "got 1 rows after 0, but the positions were made for a prompt of 0");
    toy.run.prepare(6, toy.positions(4));
    fails([&] { toy.run.step(1); }, "the cache has 0 rows of a prompt of 4: prefill first");
    fails([&] { toy.run.prefill(toy.rows(some_ids(5))); },
          "got 5 rows after 0, but the positions were made for a prompt of 4: prefill exactly what the cache "
          "lacks");
    toy.run.prefill(toy.rows(some_ids(4)));
    fails([&] { toy.run.prefill(toy.rows(some_ids(0))); }, "got 0 rows after 4");
    toy.run.step(1);
    toy.run.step(2);
    fails([&] { toy.run.step(3); },
          "the KV cache holds 6 positions, but 7 are needed: make the cache for the prompt plus "
          "max_new_tokens - 1");
    fails(
        [&] { toy.run.prepare(9, toy.positions(5), 7); },
        "cannot keep 7 rows of a cache of 6 for a prompt of 5: keep at most all cached rows, and fewer than");
    fails([&] { toy.run.prepare(9, toy.positions(5), 5); },
          "cannot keep 5 rows of a cache of 6 for a prompt of 5");
    fails([&] { toy.run.prepare(9, toy.positions(5), -1); }, "cannot keep -1 rows");
    fails([&] { toy.run.prepare(9, toy.positions(0)); },
          "cannot keep 0 rows of a cache of 6 for a prompt of 0");
    fails([&] { toy.run.prepare(-1, toy.positions(3)); }, "a KV cache cannot have -1 rows");
    Positions three = toy.positions(3);
    three.axes = 3;
    fails([&] { toy.run.prepare(9, three); }, "the positions have 3 axes, but the decoder takes 1");
    Rows wide = toy.rows(some_ids(4));
    wide.width = 7;
    toy.run.prepare(6, toy.positions(4));
    fails([&] { toy.run.prefill(wide); }, "the rows have a width of 7, expected 6");
    toy.decoder.limit = 8;
    fails([&] { toy.run.prepare(10, toy.positions(4)); },
          "a prompt of 4 rows and its answer need 9 rows of KV cache, but the engine takes 8");
}

TEST_CASE("decoder run: after memory ended it holds nothing, and goes on with less") {
    for (const char* kind : kinds) {
        CAPTURE(kind);
        Toy toy(kind);
        toy.run.prepare(10, toy.positions(9));
        toy.run.prefill(toy.rows(some_ids(9)));
        toy.backend.most_bytes = 1000;
        CHECK_THROWS_AS(toy.run.prepare(5000, toy.positions(9), 4), BackendError);
        CHECK(toy.run.length() == 0);
        CHECK_THROWS_AS(toy.run.step(1), RequestError);
        toy.run.prepare(10, toy.positions(9));
        CHECK(toy.copied(toy.run.prefill(toy.rows(some_ids(9)))) ==
              whole(kind, some_ids(9), toy.positions(9)));
    }
}

TEST_CASE("decoder run: bytes of a cache that no memory holds are an error, not a small number") {
    DecoderInfo info = toy_info();
    CHECK(cache_bytes(info, 10) == 2 * 2 * 2 * 3 * 10 * 4);
    info.cache_dtype = "float16";
    CHECK(cache_bytes(info, 10) == 2 * 2 * 2 * 3 * 10 * 2);
    CHECK_THROWS_AS(cache_bytes(info, std::int64_t{1} << 60), RequestError);
    CHECK_THROWS_AS(cache_bytes(info, -1), RequestError);
    info.cache_dtype = "int7";
    CHECK_THROWS_WITH_AS(cache_bytes(info, 1),
                         doctest::Contains("dtype is \"int7\", expected one of float32"), BundleError);
}
