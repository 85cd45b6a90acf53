// NumPy's .npz: the golden tensors of a bundle. Arrays of numbers alone, so nothing in a file is ever run.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fopru {

class NpzError : public std::runtime_error {  // what is wrong, to be put into a sentence
public:
    using std::runtime_error::runtime_error;
};

// C order, little-endian. `dtype` is NumPy's name: bool, (u)int8..64, float16, float32, float64.
struct NpyArray {
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::vector<unsigned char> bytes;

    std::size_t elements() const;
    // Any dtype, converted. Integers beyond 2^53 and float64 lose digits.
    std::vector<float> floats() const;
    std::vector<double> doubles() const;
    std::vector<std::int64_t> integers() const;  // NpzError where the dtype is a float
};

using NpzArrays = std::map<std::string, NpyArray>;

// Both throw NpzError. `most_bytes` bounds what all arrays take, before anything is allocated.
NpyArray parse_npy(std::string_view bytes, std::size_t most_bytes);
NpzArrays parse_npz(std::string_view bytes, std::size_t most_bytes = std::size_t{4} << 30);

}  // namespace fopru
