// golden.npz: a ZIP of arrays.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/npz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const std::string_view bytes(reinterpret_cast<const char*>(data), size);
        for (const auto& [name, array] : fopru::parse_npz(bytes, std::size_t{1} << 24)) array.doubles();
    } catch (const fopru::NpzError&) {
    }
    return 0;
}
