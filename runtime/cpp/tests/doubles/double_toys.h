// What the engines of the stand-in compute: small programs whose results a test can work out by itself.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "NvInferRuntime.h"
#include "base/json.h"

namespace fopru_double {

using Dims = std::vector<std::int64_t>;

struct ToyTensor {
    std::string name;
    nvinfer1::DataType type;
    Dims dims;  // -1 varies
    bool input = true;
    bool host = false;  // a shape tensor
};

std::size_t item_bytes(nvinfer1::DataType type);

// Shapes of inputs, and values of shape tensors.
struct Given {
    std::map<std::string, Dims> shapes;
    std::map<std::string, std::vector<std::int64_t>> values;
};

class Toy {
public:
    virtual ~Toy() = default;
    virtual const std::vector<ToyTensor>& tensors() const = 0;
    virtual Dims shape_of(const std::string& output, const Given& given) const = 0;
    // `data` has every tensor but the shape tensors.
    virtual void run(const Given& given, const std::map<std::string, unsigned char*>& data) const = 0;
};

// By the key "toy": "vision", "embed", "decoder", "copy". Null where there is none of the name.
std::unique_ptr<Toy> make_toy(const fopru::Json& engine);

// The numbers that toys are made of, in [-0.625, 0.625].
inline float toy_weight(int kind, std::int64_t row, std::int64_t column) {
    return static_cast<float>((row * 7 + column * 13 + kind * 5) % 11 - 5) / 8.0F;
}

// Vision: pixel_values [n, 12, 4] -> image_features [n, K, 4], kept_indices [n, K], token_scores [n, 12].
constexpr int toy_tokens = 12;
// Of all toys. The decoder has 2 layers and a cache [1, rows, 1, 3] of float32: 12 bytes a row.
constexpr int toy_hidden = 4, toy_layers = 2, toy_head = 3, toy_words = 7;

}  // namespace fopru_double
