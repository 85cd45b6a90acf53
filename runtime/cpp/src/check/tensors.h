// Arrays that are compared: golden ones, and what this device made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace fopru {

// C-contiguous [shape]; `values` has as many elements as the shape says. A value: copies are deep.
struct Tensor {
    std::vector<std::int64_t> shape;
    std::variant<std::vector<float>, std::vector<std::int64_t>> values;

    std::size_t size() const;
    double at(std::size_t place) const;         // as float64; `place` < size()
    std::string text(std::size_t place) const;  // as Python formats it: "0.5", "1e-05", "-inf", "12"
    const std::vector<std::int64_t>* integers() const {
        return std::get_if<std::vector<std::int64_t>>(&values);
    }
};

Tensor float_tensor(std::vector<std::int64_t> shape, std::vector<float> values);
Tensor integer_tensor(std::vector<std::int64_t> shape, std::vector<std::int64_t> values);

// Tensors by name, in the order in which they were put there.
class Tensors {
public:
    const Tensor* find(std::string_view name) const;  // null where there is none; valid until the next `set`
    void set(const std::string& name, Tensor tensor);
    const std::vector<std::pair<std::string, Tensor>>& items() const { return items_; }

private:
    std::vector<std::pair<std::string, Tensor>> items_;
};

}  // namespace fopru
