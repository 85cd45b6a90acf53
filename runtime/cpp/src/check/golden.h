// The golden tensors of a bundle: one request, and what the reference made of it stage by stage.
// runtime/golden.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "check/tensors.h"

namespace fopru {

// `golden/golden.json`; `images` are paths inside the bundle, at least one.
struct Golden {
    std::string prompt;
    std::vector<std::string> images;
    std::optional<double> ratio;
    std::optional<std::int64_t> tokens;
    std::string strategy;
    std::int64_t new_tokens = 0;
    std::string reference;  // who made it
};

// Both throw BundleError: the bundle has none, or they are damaged.
Golden load_record(const Bundle& bundle);
Tensors load_golden(const Bundle& bundle);

}  // namespace fopru
