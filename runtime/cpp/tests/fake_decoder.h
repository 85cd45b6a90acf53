// A language model of whole numbers, small enough that every sum is exact: what a row is depends on its
// embedding, its positions and its place, and logits depend on every valid row of the cache. So one long
// prefill and any way of chunks, steps and kept rows must agree bit by bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/contract.h"
#include "bundle/manifest.h"
#include "fake_backend.h"

namespace fopru::fake {

inline DecoderInfo toy_info(int axes = 1) {
    DecoderInfo info;
    info.layers = 2;
    info.kv_heads = 2;
    info.head_dim = 3;
    info.hidden_size = 6;
    info.vocab_size = 11;
    info.max_positions = 4096;
    info.position_axes = axes;
    return info;
}

inline std::vector<float> toy_embedding(std::int64_t token) {
    std::vector<float> row;
    for (std::int64_t column = 0; column < 6; ++column)
        row.push_back(static_cast<float>((token * 5 + column) % 13));
    return row;
}

inline FakeSession toy_embed() {
    return FakeSession({{contract::input_ids, Dtype::int64, {-1, -1}}},
                       {{contract::inputs_embeds, Dtype::float32, {-1, -1, 6}}}, [](FakeBinding& binding) {
                           const View& ids = binding.in(contract::input_ids);
                           float* out = numbers<float>(binding.out(contract::inputs_embeds));
                           for (std::int64_t row = 0; row < ids.shape.elements(); ++row) {
                               const auto own = toy_embedding(numbers<std::int64_t>(ids)[row]);
                               std::copy(own.begin(), own.end(), out + row * 6);
                           }
                       });
}

// Where row `row` of head `head` begins in a tensor of a cache kind, whose rows are `rows`.
inline std::int64_t toy_place(const std::string& kind, std::int64_t rows, std::int64_t row,
                              std::int64_t head) {
    return kind == contract::append ? (row * 2 + head) * 3 : (head * rows + row) * 3;
}

inline void toy_decode(FakeBinding& binding, const std::string& kind) {
    const DecoderInfo info = toy_info();
    const View &embeds = binding.in(contract::inputs_embeds), &positions = binding.in(contract::position_ids);
    const std::int64_t added = embeds.shape.dims[1],
                       total = binding.in(contract::attention_mask).shape.dims[1];
    const std::int64_t past = total - added, axes = positions.shape.rank == 2 ? 1 : positions.shape.dims[0];
    if (positions.shape.elements() != axes * added) throw BackendError("positions of another length");
    const auto* mask = numbers<std::int64_t>(binding.in(contract::attention_mask));
    std::vector<float> logits(11);
    for (int layer = 0; layer < info.layers; ++layer) {
        for (const char* part : {"key", "value"}) {
            const View& before = binding.in(contract::past_name(layer, part));
            const View& after = binding.out(contract::present_name(layer, part));
            const int time = kind == contract::append ? 1 : 2;
            const std::int64_t held = before.shape.dims[time], rows = after.shape.dims[time];
            const std::int64_t first = kind == contract::append ? 0 : past;  // of the new rows in `after`
            if (kind == contract::shared ? held != rows || before.buffer != after.buffer : held != past) {
                throw BackendError("a past of another length");
            }
            for (std::int64_t row = 0; row < total; ++row) {
                for (std::int64_t head = 0; head < 2; ++head) {
                    for (std::int64_t column = 0; column < 3; ++column) {
                        float value = 0;
                        const std::int64_t fresh = row - past;
                        if (fresh >= 0) {
                            value = numbers<float>(embeds)[fresh * 6 + head * 3 + column] +
                                    static_cast<float>(layer);
                            for (std::int64_t axis = 0; axis < axes; ++axis) {
                                value += static_cast<float>(
                                    (axis + 1) *
                                    (numbers<std::int64_t>(positions)[axis * added + fresh] % 17));
                            }
                            value += part[0] == 'v' ? 3.0F : 0.0F;
                            numbers<float>(after)[toy_place(kind, rows, first + fresh, head) + column] =
                                value;
                        } else {
                            value = numbers<float>(before)[toy_place(kind, held, row, head) + column];
                            if (kind == contract::concat) {
                                numbers<float>(after)[toy_place(kind, rows, row, head) + column] = value;
                            }
                        }
                        for (std::size_t id = 0; id < logits.size(); ++id) {
                            const std::int64_t weight =
                                (row * 7 + head * 3 + column + static_cast<std::int64_t>(id)) % 5;
                            logits[id] += value * static_cast<float>(weight * mask[row]);
                        }
                    }
                }
            }
        }
    }
    std::copy(logits.begin(), logits.end(), numbers<float>(binding.out(contract::logits)));
}

inline FakeSession toy_decoder(const std::string& kind) {
    std::vector<TensorName> inputs = {{contract::inputs_embeds, Dtype::float32, {}},
                                      {contract::attention_mask, Dtype::int64, {}},
                                      {contract::position_ids, Dtype::int64, {}},
                                      {contract::num_logits_to_keep, Dtype::int64, {}}};
    std::vector<TensorName> outputs = {{contract::logits, Dtype::float32, {}}};
    for (int layer = 0; layer < 2; ++layer) {
        for (const char* part : {"key", "value"}) {
            inputs.push_back({contract::past_name(layer, part), Dtype::float32, {}});
            outputs.push_back({contract::present_name(layer, part), Dtype::float32, {}});
        }
    }
    return FakeSession(inputs, outputs, [kind](FakeBinding& binding) { toy_decode(binding, kind); });
}

}  // namespace fopru::fake
