#include "decode/padded_step.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "bundle/contract.h"

namespace fopru {

namespace {

constexpr std::size_t id_bytes = sizeof(std::int64_t);

int place(int found, const char* tensor) { return required_place(found, "the decoder", tensor); }

}  // namespace

std::int64_t longest_past(const Session& decoder) {
    const int past = decoder.input(contract::past_name(0, "key"));
    return past < 0 ? std::numeric_limits<std::int64_t>::max() : decoder.greatest(past, 1);
}

PaddedStep::PaddedStep(Backend& backend, const DecoderGraphs& graphs, StackedCache& cache,
                       const StepTensors& tensors)
    : backend_(backend),
      graphs_(graphs),
      cache_(cache),
      tensors_(tensors),
      limit_(longest_past(*graphs.decoder)),
      shown_(static_cast<std::size_t>(cache.capacity()) + 1),
      positions_(static_cast<std::size_t>(tensors.axes)) {
    mask_ = backend.allocate(shown_.size() * id_bytes);
    position_ = backend.allocate(positions_.size() * id_bytes);
}

void PaddedStep::prepare() {
    for (std::int64_t length = cache_.length(); length < cache_.capacity() && length <= limit_;) {
        const std::int64_t rows = block(length);
        step(rows);
        length = rows + 1;
    }
}

void PaddedStep::run(std::int64_t position) {
    cache_.check_room(1);  // before anything runs
    const std::int64_t length = cache_.length(), rows = block(length);
    Step& own = step(rows);  // before the mask, as it may run what it records
    show(length, rows);
    std::fill(positions_.begin(), positions_.end(), position);
    backend_.upload({position_.get(), Dtype::int64, {tensors_.axes}, 0}, positions_.data());
    own.recorded->run();
    note(*own.recorded);
    cache_.take_row();
}

// The past that is bound for one of `length` rows; what is too long, the engine refuses.
std::int64_t PaddedStep::block(std::int64_t length) const {
    const std::int64_t most = std::max<std::int64_t>(length, 1);
    const std::int64_t rows = (most + block_rows - 1) / block_rows * block_rows;
    return std::max(length, std::min(rows, limit_));
}

// Let the mask show so many rows of a past of `block`, and the new one.
void PaddedStep::show(std::int64_t length, std::int64_t block) {
    std::int64_t first = 0, count = block + 1;
    if (shown_length_ == length && shown_block_ == block) return;
    if (shown_length_ == length - 1 && shown_block_ == block) {
        first = length - 1;
        count = 1;
        shown_[static_cast<std::size_t>(first)] = 1;
    } else {
        std::fill_n(shown_.begin(), length, 1);
        std::fill(shown_.begin() + length, shown_.begin() + block, 0);
        shown_[static_cast<std::size_t>(block)] = 1;
    }
    shown_length_ = -1;  // until it is there
    backend_.upload({mask_.get(), Dtype::int64, {count}, static_cast<std::size_t>(first) * id_bytes},
                    shown_.data() + first);
    shown_length_ = length;
    shown_block_ = block;
}

void PaddedStep::note(const Recorded& recorded) {
    if (refusal_.empty() && !recorded.refusal().empty()) refusal_ = recorded.refusal();
}

PaddedStep::Step& PaddedStep::step(std::int64_t block) {
    const auto found = steps_.find(block);
    if (found != steps_.end()) return found->second;
    const Session &embed = *graphs_.embed, &decoder = *graphs_.decoder;
    Step made{graphs_.embed->bind(), graphs_.decoder->bind(), nullptr};
    made.embed->set_input(
        required_place(embed.input(contract::input_ids), contract::embed_tokens, contract::input_ids),
        tensors_.token);
    made.embed->set_output(required_place(embed.output(contract::inputs_embeds), contract::embed_tokens,
                                          contract::inputs_embeds),
                           tensors_.embedding);
    Binding& binding = *made.decoder;
    const auto input = [&](const char* tensor, const View& view) {
        binding.set_input(place(decoder.input(tensor), tensor), view);
    };
    input(contract::inputs_embeds, tensors_.embedding);
    input(contract::attention_mask, {mask_.get(), Dtype::int64, {1, block + 1}, 0});
    const Shape positions = tensors_.axes == 1 ? Shape{1, 1} : Shape{tensors_.axes, 1, 1};
    input(contract::position_ids, {position_.get(), Dtype::int64, positions, 0});
    input(contract::num_logits_to_keep, tensors_.count);
    binding.set_output(place(decoder.output(contract::logits), contract::logits), tensors_.logits);
    cache_.bind_padded(binding, block);
    made.recorded = backend_.record({made.embed.get(), made.decoder.get()});
    if (made.recorded == nullptr) {
        throw BackendError(std::string("backend ") + backend_.name() + " records no decoding steps");
    }
    note(*made.recorded);
    return steps_[block] = std::move(made);
}

}  // namespace fopru
