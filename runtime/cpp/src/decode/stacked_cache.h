// The cache `append` of a backend that records its steps: one buffer for all tensors. runtime/kv_cache.py.
#pragma once

#include "decode/kv_cache.h"

namespace fopru {

constexpr std::int64_t block_rows = 256;       // by which it grows, so that recorded runs serve again
constexpr std::size_t tensor_alignment = 256;  // bytes: where a recorded run takes the begin of a tensor

// [tensors, capacity, kv_heads, head_dim]: a row goes into each tensor by one copy. In whole blocks of rows.
// Growing needs the old and the new buffer at once.
class StackedCache final : public KvCache {
public:
    StackedCache(Backend& backend, const Session& decoder, const DecoderInfo& info, std::int64_t capacity);

    std::int64_t row_step() const override;
    bool oversized(std::int64_t capacity) const override;
    void grow(std::int64_t capacity) override;

    // Binds a past of so many rows, behind the valid ones of which stands anything finite, and for a present
    // of one row a place beside the cache.
    void bind_padded(Binding& decoder, std::int64_t rows) const;
    void take_row();  // copies the rows of that place behind the valid ones. RequestError: the cache is full

protected:
    std::unique_ptr<Buffer> new_buffer() const override;
    View past(std::size_t tensor) const override { return rows_of(tensor, 0, length_); }
    View present(std::size_t tensor, std::int64_t rows) const override {
        return rows_of(tensor, length_, rows);
    }
    void move(Buffer& source, Buffer& target, std::int64_t before) const override;

private:
    View rows_of(std::size_t tensor, std::int64_t first, std::int64_t rows) const;

    std::int64_t pitch_;  // elements from the new row of one tensor to that of the next
    std::unique_ptr<Buffer> new_;
};

}  // namespace fopru
