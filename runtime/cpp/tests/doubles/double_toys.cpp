#include "double_toys.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace fopru_double {

namespace {

using nvinfer1::DataType;

template <class T>
T* as(const std::map<std::string, unsigned char*>& data, const std::string& name) {
    return reinterpret_cast<T*>(data.at(name));
}

std::string cache_name(bool past, int layer, const char* part) {
    return std::string(past ? "past_key_values." : "present.") + std::to_string(layer) + "." + part;
}

// Keeps the tokens with the greatest sums of squares, in their own order; the earlier one of equals.
class Vision final : public Toy {
public:
    const std::vector<ToyTensor>& tensors() const override { return tensors_; }

    Dims shape_of(const std::string& output, const Given& given) const override {
        const std::int64_t images = given.shapes.at("pixel_values")[0];
        const std::int64_t keep = given.values.at("num_keep")[0];
        if (output == "image_features") return {images, keep, toy_hidden};
        if (output == "kept_indices") return {images, keep};
        return {images, toy_tokens};
    }

    void run(const Given& given, const std::map<std::string, unsigned char*>& data) const override {
        const auto images = static_cast<std::size_t>(given.shapes.at("pixel_values")[0]);
        const auto keep = static_cast<std::size_t>(given.values.at("num_keep")[0]);
        for (std::size_t image = 0; image < images; ++image) {
            const float* pixels = as<float>(data, "pixel_values") + image * toy_tokens * toy_hidden;
            float* scores = as<float>(data, "token_scores") + image * toy_tokens;
            for (int token = 0; token < toy_tokens; ++token) {
                scores[token] = 0;
                for (int at = 0; at < toy_hidden; ++at) {
                    scores[token] += pixels[token * toy_hidden + at] * pixels[token * toy_hidden + at];
                }
            }
            std::vector<std::int64_t> order(toy_tokens);
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(),
                             [&](auto a, auto b) { return scores[a] > scores[b]; });
            order.resize(keep);
            std::sort(order.begin(), order.end());
            std::copy(order.begin(), order.end(), as<std::int64_t>(data, "kept_indices") + image * keep);
            float* rows = as<float>(data, "image_features") + image * keep * toy_hidden;
            for (std::size_t row = 0; row < keep; ++row) {
                for (int out = 0; out < toy_hidden; ++out) {
                    float sum = 0;
                    for (int at = 0; at < toy_hidden; ++at) {
                        sum += pixels[order[row] * toy_hidden + at] * toy_weight(0, at, out);
                    }
                    rows[row * toy_hidden + static_cast<std::size_t>(out)] = sum;
                }
            }
        }
    }

private:
    std::vector<ToyTensor> tensors_ = {{"pixel_values", DataType::kFLOAT, {-1, toy_tokens, toy_hidden}},
                                       {"num_keep", DataType::kINT64, {1}, true, true},
                                       {"image_features", DataType::kFLOAT, {-1, -1, toy_hidden}, false},
                                       {"kept_indices", DataType::kINT64, {-1, -1}, false},
                                       {"token_scores", DataType::kFLOAT, {-1, toy_tokens}, false}};
};

class Embed final : public Toy {
public:
    const std::vector<ToyTensor>& tensors() const override { return tensors_; }
    Dims shape_of(const std::string&, const Given& given) const override {
        return {1, given.shapes.at("input_ids")[1], toy_hidden};
    }
    void run(const Given& given, const std::map<std::string, unsigned char*>& data) const override {
        const std::int64_t* ids = as<std::int64_t>(data, "input_ids");
        for (std::int64_t row = 0; row < given.shapes.at("input_ids")[1]; ++row) {
            for (int at = 0; at < toy_hidden; ++at) {
                as<float>(data, "inputs_embeds")[row * toy_hidden + at] = toy_weight(1, ids[row], at);
            }
        }
    }

private:
    std::vector<ToyTensor> tensors_ = {{"input_ids", DataType::kINT64, {1, -1}},
                                       {"inputs_embeds", DataType::kFLOAT, {1, -1, toy_hidden}, false}};
};

// One head of attention over past and new rows, added to the row, in every layer; what the mask hides has no
// weight.
class Decoder final : public Toy {
public:
    Decoder() {
        tensors_ = {{"inputs_embeds", DataType::kFLOAT, {1, -1, toy_hidden}},
                    {"attention_mask", DataType::kINT64, {1, -1}},
                    {"position_ids", DataType::kINT64, {1, -1}},
                    {"num_logits_to_keep", DataType::kINT64, {}, true, true}};
        for (const bool past : {true, false}) {
            if (!past) tensors_.push_back({"logits", DataType::kFLOAT, {1, -1, toy_words}, false});
            for (int layer = 0; layer < toy_layers; ++layer) {
                for (const char* part : {"key", "value"}) {
                    tensors_.push_back(
                        {cache_name(past, layer, part), DataType::kFLOAT, {1, -1, 1, toy_head}, past});
                }
            }
        }
    }

    const std::vector<ToyTensor>& tensors() const override { return tensors_; }

    Dims shape_of(const std::string& output, const Given& given) const override {
        if (output == "logits") return {1, given.values.at("num_logits_to_keep")[0], toy_words};
        return {1, given.shapes.at("inputs_embeds")[1], 1, toy_head};
    }

    void run(const Given& given, const std::map<std::string, unsigned char*>& data) const override {
        const std::int64_t rows = given.shapes.at("inputs_embeds")[1];
        const std::int64_t past = given.shapes.at("past_key_values.0.key")[1];
        const std::int64_t keep = given.values.at("num_logits_to_keep")[0];
        const float* embeds = as<float>(data, "inputs_embeds");
        std::vector<float> states(embeds, embeds + rows * toy_hidden);
        for (int layer = 0; layer < toy_layers; ++layer) run_layer(layer, {past, rows}, data, states);
        float* logits = as<float>(data, "logits");
        for (std::int64_t row = rows - keep; row < rows; ++row) {
            for (int word = 0; word < toy_words; ++word, ++logits) {
                *logits = 0;
                for (int at = 0; at < toy_hidden; ++at) {
                    *logits +=
                        states[static_cast<std::size_t>(row * toy_hidden + at)] * toy_weight(6, word, at);
                }
            }
        }
    }

private:
    using Extent = std::pair<std::int64_t, std::int64_t>;  // past rows, new rows

    void run_layer(int layer, Extent extent, const std::map<std::string, unsigned char*>& data,
                   std::vector<float>& states) const {
        const auto [past, rows] = extent;
        const float* old_keys = as<float>(data, cache_name(true, layer, "key"));
        const float* old_values = as<float>(data, cache_name(true, layer, "value"));
        float* keys = as<float>(data, cache_name(false, layer, "key"));
        float* values = as<float>(data, cache_name(false, layer, "value"));
        const std::int64_t *mask = as<std::int64_t>(data, "attention_mask"),
                           *positions = as<std::int64_t>(data, "position_ids");
        for (std::int64_t row = 0; row < rows; ++row) {
            for (int out = 0; out < toy_head; ++out) {
                float key = 0.0625F * static_cast<float>(positions[row]), value = 0;
                for (int at = 0; at < toy_hidden; ++at) {
                    const float state = states[static_cast<std::size_t>(row * toy_hidden + at)];
                    key += state * toy_weight(2 + layer, at, out);
                    value += state * toy_weight(4 + layer, out, at);
                }
                keys[row * toy_head + out] = key;
                values[row * toy_head + out] = value;
            }
        }
        for (std::int64_t row = 0; row < rows; ++row) {
            const auto score_of = [&](std::int64_t at) {
                const float* key = at < past ? old_keys + at * toy_head : keys + (at - past) * toy_head;
                float score = 0;
                for (int place = 0; place < toy_head; ++place)
                    score += keys[row * toy_head + place] * key[place];
                return score * 0.25F;
            };
            float total = 0, mixed[toy_head] = {}, greatest = score_of(past + row);
            for (std::int64_t at = 0; at < past + row; ++at) {
                if (mask[at] != 0) greatest = std::max(greatest, score_of(at));
            }
            for (std::int64_t at = 0; at <= past + row; ++at) {
                if (mask[at] == 0) continue;
                const float* value = at < past ? old_values + at * toy_head : values + (at - past) * toy_head;
                const float share = std::exp(score_of(at) - greatest);
                total += share;
                for (int place = 0; place < toy_head; ++place) mixed[place] += share * value[place];
            }
            for (int at = 0; at < toy_hidden; ++at) {
                states[static_cast<std::size_t>(row * toy_hidden + at)] += mixed[at % toy_head] / total;
            }
        }
    }

    std::vector<ToyTensor> tensors_;
};

// Outputs are the inputs, one by one; tensors are as the engine lists them.
class Copy final : public Toy {
public:
    explicit Copy(const fopru::Json& engine) {
        const fopru::Json* listed = engine.find("tensors");
        for (const fopru::Json& own : *listed->array()) {
            Dims dims;
            for (const fopru::Json& dim : *own.find("dims")->array()) dims.push_back(*dim.integer());
            const auto type = static_cast<DataType>(*own.find("type")->integer());
            const bool host = own.find("host") != nullptr;
            tensors_.push_back({*own.find("name")->text(), type, dims, *own.find("input")->boolean(), host});
        }
    }

    const std::vector<ToyTensor>& tensors() const override { return tensors_; }
    Dims shape_of(const std::string& output, const Given& given) const override {
        return given.shapes.at(source_of(output).name);
    }
    void run(const Given& given, const std::map<std::string, unsigned char*>& data) const override {
        for (const ToyTensor& own : tensors_) {
            if (own.input) continue;
            std::size_t bytes = item_bytes(own.type);
            for (const std::int64_t dim : shape_of(own.name, given)) bytes *= static_cast<std::size_t>(dim);
            if (bytes != 0) std::memcpy(data.at(own.name), data.at(source_of(own.name).name), bytes);
        }
    }

private:
    const ToyTensor& source_of(const std::string& output) const {
        std::size_t outputs = 0, inputs = 0;
        for (const ToyTensor& own : tensors_) {
            if (own.name == output) break;
            outputs += own.input ? 0 : 1;
        }
        for (const ToyTensor& own : tensors_) {
            if (own.input && !own.host && inputs++ == outputs) return own;
        }
        return tensors_.front();
    }

    std::vector<ToyTensor> tensors_;
};

}  // namespace

std::size_t item_bytes(DataType type) {
    switch (type) {
        case DataType::kINT64: return 8;
        case DataType::kFLOAT:
        case DataType::kINT32: return 4;
        case DataType::kHALF:
        case DataType::kBF16: return 2;
        default: return 1;
    }
}

std::unique_ptr<Toy> make_toy(const fopru::Json& engine) {
    const fopru::Json* name = engine.find("toy");
    if (name == nullptr || name->text() == nullptr) return nullptr;
    if (*name->text() == "vision") return std::make_unique<Vision>();
    if (*name->text() == "embed") return std::make_unique<Embed>();
    if (*name->text() == "decoder") return std::make_unique<Decoder>();
    if (*name->text() == "copy") return std::make_unique<Copy>(engine);
    return nullptr;
}

}  // namespace fopru_double
