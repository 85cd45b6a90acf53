// One answer's way through the decoder: prefill in chunks, then token by token. runtime/decoder.py,
// kv_cache.py.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bundle/manifest.h"
#include "pruning/pruning.h"

namespace fopru {

constexpr std::int64_t prefill_rows = 512;  // of a prompt that go through the decoder at once

std::uint64_t cache_bytes(const DecoderInfo& info, std::int64_t rows);  // one copy of the KV cache

// Opened graphs of the language model; both must outlive every run.
struct DecoderGraphs {
    Session* embed = nullptr;
    Session* decoder = nullptr;
    std::string cache;  // "shared", "append" or "concat"
};

// Rows of embeddings [L, D] float32 where the backend has them.
struct Rows {
    std::shared_ptr<Buffer> buffer;
    std::int64_t count = 0;
    std::int64_t width = 0;
    std::size_t offset = 0;  // bytes
};

// Owns the KV cache and the small buffers. `prepare` may allocate; `step` allocates nothing (counted by a
// test). A run serves one answer after the other. Not for two threads at once.
class DecoderRun {
public:
    DecoderRun(Backend& backend, const DecoderGraphs& graphs, const DecoderInfo& info);
    ~DecoderRun();
    // Make room for `capacity` rows, of which the first `keep` of the last answer stay, and take the
    // positions of a prompt. RequestError: more than there is to keep, or nothing left to compute.
    void prepare(std::int64_t capacity, const Positions& positions, std::int64_t keep = 0);
    // Rows behind the kept ones, [L - keep, D]; returns logits [V] of the last, valid until the next call.
    const float* prefill(const Rows& embeds);
    const float* step(std::int64_t token);  // one more token
    // After `prefill`: whatever the first steps do and later ones do not; where the backend can, steps are
    // recorded.
    void warm();
    // Why steps are not recorded though the backend can, and so are slower; else empty.
    const std::string& refusal() const;
    std::int64_t length() const;  // valid rows of the cache
    std::int64_t capacity() const;
    std::int64_t row_step() const;  // `keep` of another prompt is best a multiple of so many rows
    bool oversized(std::int64_t capacity) const;  // the cache: of more than twice what so many rows need
    std::uint64_t allocated_bytes() const;        // of the cache

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace fopru
