#include "decode/kv_cache.h"

#include <limits>

#include "base/error.h"
#include "bundle/contract.h"
#include "decode/decoder_run.h"
#include "decode/stacked_cache.h"

namespace fopru {

namespace {

constexpr const char* parts[] = {"key", "value"};

// [1, kv_heads, capacity, head_dim], past and present at once: the graph writes behind the valid rows.
class SharedCache : public KvCache {
public:
    SharedCache(Backend& backend, const Session& decoder, const DecoderInfo& info, std::int64_t capacity)
        : KvCache(backend, decoder, info, capacity) {
        buffers_ = new_buffers();
    }
    bool fixed() const override { return true; }

protected:
    View past(std::size_t tensor) const override {
        return view(*buffers_[tensor], {1, heads_, capacity_, head_dim_});
    }
    View present(std::size_t tensor, std::int64_t) const override { return past(tensor); }
    void move(Buffer& source, Buffer& target, std::int64_t before) const override {
        move_by_head({source, before}, {target, capacity_}, length_);
    }
};

// [1, length, kv_heads, head_dim], time-major: the graph's new rows are bound behind the old ones.
class AppendCache : public KvCache {
public:
    AppendCache(Backend& backend, const Session& decoder, const DecoderInfo& info, std::int64_t capacity)
        : KvCache(backend, decoder, info, capacity) {
        buffers_ = new_buffers();
    }

protected:
    View past(std::size_t tensor) const override { return valid(*buffers_[tensor]); }
    View present(std::size_t tensor, std::int64_t rows) const override {
        return view(*buffers_[tensor], {1, rows, heads_, head_dim_}, length_);
    }
    void move(Buffer& source, Buffer& target, std::int64_t) const override {
        backend_.copy(valid(target), valid(source));
    }

private:
    View valid(Buffer& buffer) const { return view(buffer, {1, length_, heads_, head_dim_}); }
};

// [1, kv_heads, length, head_dim]: the graph returns past and new as one tensor, into the other buffer.
class ConcatCache : public KvCache {
public:
    ConcatCache(Backend& backend, const Session& decoder, const DecoderInfo& info, std::int64_t capacity)
        : KvCache(backend, decoder, info, capacity) {
        buffers_ = new_buffers();
        spare_ = new_buffers();
    }
    void advance(std::int64_t rows) override {
        buffers_.swap(spare_);
        KvCache::advance(rows);
    }
    // Heads lie one behind the other, each of `length` rows: shorter ones have to be moved together.
    void cut(std::int64_t length) override {
        if (length == length_) return;
        for (std::size_t place = 0; place < buffers_.size(); ++place) {
            move_by_head({*buffers_[place], length_}, {*spare_[place], length}, length);
        }
        buffers_.swap(spare_);
        KvCache::cut(length);
    }
    void grow(std::int64_t capacity) override {
        if (capacity <= capacity_) return;
        spare_.clear();
        KvCache::grow(capacity);
        spare_ = new_buffers();
    }

protected:
    View past(std::size_t tensor) const override {
        return view(*buffers_[tensor], {1, heads_, length_, head_dim_});
    }
    View present(std::size_t tensor, std::int64_t rows) const override {
        return view(*spare_[tensor], {1, heads_, length_ + rows, head_dim_});
    }
    void move(Buffer& source, Buffer& target, std::int64_t) const override {
        move_by_head({source, length_}, {target, length_}, length_);
    }
    const std::vector<std::unique_ptr<Buffer>>& targets() const override { return spare_; }

private:
    std::vector<std::unique_ptr<Buffer>> spare_;
};

}  // namespace

std::uint64_t cache_bytes(const DecoderInfo& info, std::int64_t rows) {
    std::uint64_t bytes = 2 * item_bytes(dtype_named(info.cache_dtype));
    for (const std::int64_t factor :
         {std::int64_t{info.layers}, std::int64_t{info.kv_heads}, std::int64_t{info.head_dim}, rows}) {
        if (factor < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(factor), &bytes)) {
            throw RequestError("a KV cache of " + std::to_string(rows) +
                               " rows is larger than any memory: lower the ratio or max_new_tokens");
        }
    }
    return bytes;
}

KvCache::KvCache(Backend& backend, const Session& decoder, const DecoderInfo& info, std::int64_t capacity)
    : backend_(backend),
      dtype_(dtype_named(info.cache_dtype)),
      heads_(info.kv_heads),
      head_dim_(info.head_dim),
      capacity_(capacity) {
    cache_bytes(info, 2 * capacity);  // refuses what would not fit 64 bits anywhere below
    for (int layer = 0; layer < info.layers; ++layer) {
        for (const char* part : parts) {
            const std::string past = contract::past_name(layer, part),
                              present = contract::present_name(layer, part);
            past_places_.push_back(required_place(decoder.input(past), "the decoder", past));
            present_places_.push_back(required_place(decoder.output(present), "the decoder", present));
        }
    }
}

std::unique_ptr<KvCache> KvCache::make(Backend& backend, const Session& decoder, const DecoderInfo& info,
                                       const std::string& kind, std::int64_t capacity) {
    if (capacity < 0 || capacity > std::numeric_limits<std::int32_t>::max()) {
        throw RequestError("a KV cache cannot have " + std::to_string(capacity) +
                           " rows: lower the ratio or max_new_tokens");
    }
    if (kind == contract::shared) return std::make_unique<SharedCache>(backend, decoder, info, capacity);
    if (kind == contract::append && backend.records())
        return std::make_unique<StackedCache>(backend, decoder, info, capacity);
    if (kind == contract::append) return std::make_unique<AppendCache>(backend, decoder, info, capacity);
    if (kind == contract::concat) return std::make_unique<ConcatCache>(backend, decoder, info, capacity);
    throw BundleError("a decoder's cache is \"" + kind +
                      "\", expected one of shared, append, concat: " + rebuild_bundle);
}

std::uint64_t KvCache::allocated_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& buffer : buffers_) bytes += buffer->bytes();
    if (&targets() != &buffers_) {
        for (const auto& buffer : targets()) bytes += buffer->bytes();
    }
    return bytes;
}

void KvCache::check_room(std::int64_t rows) const {
    if (length_ + rows > capacity_) {
        throw RequestError("the KV cache holds " + std::to_string(capacity_) + " positions, but " +
                           std::to_string(length_ + rows) +
                           " are needed: make the cache for the prompt plus max_new_tokens - 1");
    }
}

void KvCache::bind(Binding& decoder, std::int64_t rows) const {
    check_room(rows);
    for (std::size_t tensor = 0; tensor < tensors(); ++tensor) {
        decoder.set_input(past_places_[tensor], past(tensor));
        decoder.set_output(present_places_[tensor], present(tensor, rows));
    }
}

void KvCache::grow(std::int64_t capacity) {
    if (capacity <= capacity_) return;
    const std::int64_t before = capacity_;
    capacity_ = capacity;
    // One at a time: a cache is much of the memory there is.
    for (auto& buffer : buffers_) {
        auto grown = new_buffer();
        move(*buffer, *grown, before);
        buffer = std::move(grown);
    }
}

std::unique_ptr<Buffer> KvCache::new_buffer() const {
    return backend_.allocate(static_cast<std::size_t>(capacity_) * row_bytes());
}

std::vector<std::unique_ptr<Buffer>> KvCache::new_buffers() const {
    std::vector<std::unique_ptr<Buffer>> all;
    for (std::size_t place = 0; place < past_places_.size(); ++place) all.push_back(new_buffer());
    return all;
}

View KvCache::view(Buffer& buffer, const Shape& shape, std::int64_t first_row) const {
    return {&buffer, dtype_, shape, static_cast<std::size_t>(first_row) * row_bytes()};
}

void KvCache::move_by_head(Stored source, Stored target, std::int64_t rows) const {
    const std::size_t row = static_cast<std::size_t>(head_dim_) * item_bytes(dtype_);
    for (std::int64_t head = 0; head < heads_; ++head) {
        const Shape shape{rows, head_dim_};
        backend_.copy({&target.buffer, dtype_, shape, static_cast<std::size_t>(head * target.room) * row},
                      {&source.buffer, dtype_, shape, static_cast<std::size_t>(head * source.room) * row});
    }
}

}  // namespace fopru
