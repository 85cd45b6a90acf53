// Arithmetic on numbers from files: an overflow is an error, never a small number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace fopru {

// None where the result does not fit. T: std::int64_t, std::uint64_t or std::size_t.
template <class T>
std::optional<T> checked_mul(T a, T b) {
    T out{};
    if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
    return out;
}

template <class T>
std::optional<T> checked_add(T a, T b) {
    T out{};
    if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
    return out;
}

// Product of dims times `item` bytes; none where a dim is negative or the product does not fit in 63 bits. A
// dim 0 makes 0, whatever the others are.
std::optional<std::size_t> checked_bytes(const std::vector<std::int64_t>& dims, std::size_t item);

}  // namespace fopru
