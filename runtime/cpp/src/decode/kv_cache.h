// The decoder's key/value cache of one sequence, made once per answer for the pruned prompt plus the answer.
// runtime/kv_cache.py.
//
// With `shared` and `append` the new rows are written behind the old ones, in place; `concat`, of older
// bundles, needs two buffers per tensor that take turns.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bundle/manifest.h"

namespace fopru {

// Up to `capacity` rows, of which `length` are valid. Owns its buffers, which must not go before bindings to
// them; the backend and the session must outlive it. Binding and advancing allocate nothing. Not for two
// threads at once.
class KvCache {
public:
    // `kind` is "shared", "append" or "concat". BackendError: no memory. BundleError: the graph lacks a
    // tensor.
    static std::unique_ptr<KvCache> make(Backend& backend, const Session& decoder, const DecoderInfo& info,
                                         const std::string& kind, std::int64_t capacity);
    virtual ~KvCache() = default;
    KvCache(const KvCache&) = delete;
    KvCache& operator=(const KvCache&) = delete;

    std::int64_t capacity() const { return capacity_; }
    std::int64_t length() const { return length_; }
    std::uint64_t allocated_bytes() const;
    // Whether past and present are the same views at every step: then `bind` is wanted once, behind every
    // change of the capacity.
    virtual bool fixed() const { return false; }
    // New rows of more than one step can only be written behind a multiple of so many.
    virtual std::int64_t row_step() const { return 1; }
    // Whether it is of more than twice the size that a request of `capacity` rows needs.
    virtual bool oversized(std::int64_t capacity) const { return capacity_ - capacity > capacity; }

    // Past, and present with room for `rows` more. RequestError: that is more than the capacity.
    void bind(Binding& decoder, std::int64_t rows) const;
    void check_room(std::int64_t rows) const;                     // RequestError, as of `bind`
    virtual void advance(std::int64_t rows) { length_ += rows; }  // the present becomes the past
    virtual void cut(std::int64_t length) { length_ = length; }   // the first of the valid rows stay
    // The valid rows are copied, once, tensor by tensor. Bindings to the old buffers must be gone before.
    virtual void grow(std::int64_t capacity);

protected:
    struct Stored {
        Buffer& buffer;
        std::int64_t room;  // rows from one head to the next, where rows are by head
    };
    KvCache(Backend& backend, const Session& decoder, const DecoderInfo& info, std::int64_t capacity);

    virtual std::unique_ptr<Buffer> new_buffer() const;
    std::size_t row_bytes() const {
        return static_cast<std::size_t>(heads_ * head_dim_) * item_bytes(dtype_);
    }
    std::size_t tensors() const { return past_places_.size(); }
    std::vector<std::unique_ptr<Buffer>> new_buffers() const;
    // Copies the first rows of every head of one buffer, [kv_heads, room, head_dim], to another.
    void move_by_head(Stored source, Stored target, std::int64_t rows) const;
    View view(Buffer& buffer, const Shape& shape, std::int64_t first_row = 0) const;

    // Of a tensor by its place in `past_places_`, and its room for so many new rows.
    virtual View past(std::size_t tensor) const = 0;
    virtual View present(std::size_t tensor, std::int64_t rows) const = 0;
    // `before` is the capacity of the source.
    virtual void move(Buffer& source, Buffer& target, std::int64_t before) const = 0;
    // Of the present.
    virtual const std::vector<std::unique_ptr<Buffer>>& targets() const { return buffers_; }

    Backend& backend_;
    Dtype dtype_;
    std::int64_t heads_, head_dim_;
    std::int64_t capacity_, length_ = 0;
    std::vector<int> past_places_, present_places_;  // of layer 0's key, its value, layer 1's key, ...
    std::vector<std::unique_ptr<Buffer>> buffers_;   // in the same order, or one for all
};

}  // namespace fopru
