// The golden tensors of a bundle: one request, and what the reference made of it stage by stage. runtime/golden.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/npz.h"
#include "bundle/bundle.h"

namespace fopru {

constexpr const char* golden_record = "golden/golden.json";
constexpr const char* golden_tensors = "golden/golden.npz";

// `images` are paths inside the bundle.
struct Golden {
    std::string prompt;
    std::vector<std::string> images;
    std::optional<double> ratio;
    std::optional<std::int64_t> tokens;
    std::string strategy;
    std::int64_t new_tokens = 0;
    std::string reference;
};

// Both throw BundleError: the bundle has none, or they are damaged. Tensors of older formats come in the newest form.
Golden load_golden_record(const Bundle& bundle);
NpzArrays load_golden_tensors(const Bundle& bundle);

}  // namespace fopru
