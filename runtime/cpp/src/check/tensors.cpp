#include "check/tensors.h"

#include "base/python_text.h"

namespace fopru {

std::size_t Tensor::size() const {
    return std::visit([](const auto& own) { return own.size(); }, values);
}

double Tensor::at(std::size_t place) const {
    return std::visit([place](const auto& own) { return static_cast<double>(own[place]); }, values);
}

std::string Tensor::text(std::size_t place) const {
    if (const auto* own = integers()) return std::to_string((*own)[place]);
    return python_float(at(place));
}

Tensor float_tensor(std::vector<std::int64_t> shape, std::vector<float> values) {
    return {std::move(shape), std::move(values)};
}

Tensor integer_tensor(std::vector<std::int64_t> shape, std::vector<std::int64_t> values) {
    return {std::move(shape), std::move(values)};
}

const Tensor* Tensors::find(std::string_view name) const {
    for (const auto& [own, tensor] : items_) {
        if (own == name) return &tensor;
    }
    return nullptr;
}

void Tensors::set(const std::string& name, Tensor tensor) {
    for (auto& [own, place] : items_) {
        if (own == name) {
            place = std::move(tensor);
            return;
        }
    }
    items_.emplace_back(name, std::move(tensor));
}

}  // namespace fopru
