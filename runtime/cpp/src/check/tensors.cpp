#include "check/tensors.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace fopru {
namespace {

// The shortest digits that read back as this float32, placed as NumPy places them.
std::string float_text(float value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
    const std::string sign = std::signbit(value) ? "-" : "";
    const float size = std::fabs(value);
    if (size == 0.0f) return sign + "0.0";
    char buffer[32];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, size, std::chars_format::scientific).ptr;
    const std::string text(buffer, end);  // "1.25e-05"
    const std::size_t mark = text.find('e');
    const int exponent = std::atoi(text.c_str() + mark + 1);
    if (exponent < -4 || exponent >= 16) return sign + text;
    std::string digits = text.substr(0, mark);
    if (digits.size() > 1) digits.erase(1, 1);
    const int count = static_cast<int>(digits.size());
    if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
    if (count <= exponent + 1) return sign + digits + std::string(exponent + 1 - count, '0') + ".0";
    return sign + digits.insert(exponent + 1, ".");
}

}  // namespace

std::size_t Tensor::size() const {
    return std::visit([](const auto& own) { return own.size(); }, values);
}

double Tensor::at(std::size_t place) const {
    return std::visit([place](const auto& own) { return static_cast<double>(own[place]); }, values);
}

std::string Tensor::text(std::size_t place) const {
    if (const auto* own = integers()) return std::to_string((*own)[place]);
    return float_text(std::get<std::vector<float>>(values)[place]);
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
