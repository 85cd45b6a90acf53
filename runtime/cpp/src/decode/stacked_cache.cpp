#include "decode/stacked_cache.h"

#include <numeric>

namespace fopru {

namespace {

std::int64_t in_blocks(std::int64_t rows) { return (rows + block_rows - 1) / block_rows * block_rows; }

}  // namespace

StackedCache::StackedCache(Backend& backend, const Session& decoder, const DecoderInfo& info,
                           std::int64_t capacity)
    : KvCache(backend, decoder, info, in_blocks(capacity)) {
    const std::size_t pitch = (row_bytes() + tensor_alignment - 1) / tensor_alignment * tensor_alignment;
    pitch_ = static_cast<std::int64_t>(pitch / item_bytes(dtype_));
    buffers_.push_back(StackedCache::new_buffer());
    new_ = backend.allocate(tensors() * pitch);
}

std::int64_t StackedCache::row_step() const {
    return static_cast<std::int64_t>(tensor_alignment / std::gcd(tensor_alignment, row_bytes()));
}

bool StackedCache::oversized(std::int64_t capacity) const { return capacity_ > in_blocks(2 * capacity); }

void StackedCache::grow(std::int64_t capacity) { KvCache::grow(in_blocks(capacity)); }

void StackedCache::bind_padded(Binding& decoder, std::int64_t rows) const {
    for (std::size_t tensor = 0; tensor < tensors(); ++tensor) {
        decoder.set_input(past_places_[tensor], rows_of(tensor, 0, rows));
        const std::size_t before = tensor * static_cast<std::size_t>(pitch_) * item_bytes(dtype_);
        decoder.set_output(present_places_[tensor], {new_.get(), dtype_, {1, 1, heads_, head_dim_}, before});
    }
}

void StackedCache::take_row() {
    check_room(1);
    const Shape shape{static_cast<std::int64_t>(tensors()), heads_ * head_dim_};
    View target = view(*buffers_.front(), shape, length_);
    backend_.copy_rows(target, {new_.get(), dtype_, shape, 0}, {capacity_ * heads_ * head_dim_, pitch_});
    advance(1);
}

std::unique_ptr<Buffer> StackedCache::new_buffer() const {
    return backend_.allocate(tensors() * static_cast<std::size_t>(capacity_) * row_bytes());
}

void StackedCache::move(Buffer& source, Buffer& target, std::int64_t before) const {
    const std::int64_t row = heads_ * head_dim_;
    const Shape shape{static_cast<std::int64_t>(tensors()), length_ * row};
    backend_.copy_rows(view(target, shape), view(source, shape), {capacity_ * row, before * row});
}

View StackedCache::rows_of(std::size_t tensor, std::int64_t first, std::int64_t rows) const {
    const auto begin = static_cast<std::int64_t>(tensor) * capacity_ + first;
    return view(*buffers_.front(), {1, rows, heads_, head_dim_}, begin);
}

}  // namespace fopru
