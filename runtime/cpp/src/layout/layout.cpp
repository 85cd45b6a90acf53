#include "layout/layout.h"

#include <numeric>

#include "base/error.h"
#include "base/python_text.h"
#include "bundle/decode.h"
#include "layout/layouts.h"

namespace fopru {

namespace {

struct Kind {
    const char* name;
    std::unique_ptr<const Layout> (*make)(const Json& json, const std::string& where);
};

constexpr Kind kinds[] = {
    {"single", make_single}, {"anyres", make_anyres}, {"split", make_split},
    {"native", make_native}, {"aspect", make_aspect},
};

}  // namespace

std::optional<Grid> Unit::valid_grid() const {
    if (!valid) return grid;
    const auto [top, bottom, left, right] = *valid;
    return Grid{bottom - top, right - left};
}

std::int64_t Unit::prunable() const {
    if (!valid) return tokens;
    const auto [top, bottom, left, right] = *valid;
    return std::int64_t{bottom - top} * (right - left);
}

std::vector<std::int64_t> Unit::valid_indices() const {
    std::vector<std::int64_t> indices;
    if (!valid || !grid) {
        indices.resize(static_cast<std::size_t>(tokens));
        std::iota(indices.begin(), indices.end(), std::int64_t{0});
        return indices;
    }
    const auto [top, bottom, left, right] = *valid;
    for (std::int64_t row = top; row < bottom; ++row) {
        for (std::int64_t column = left; column < right; ++column)
            indices.push_back(row * grid->second + column);
    }
    return indices;
}

std::int64_t ImagePlan::placeholders() const {
    return std::accumulate(runs.begin(), runs.end(), std::int64_t{0});
}

std::int64_t ImagePlan::prunable() const {
    std::int64_t total = 0;
    for (const auto& unit : units) total += unit.prunable();
    return total;
}

std::unique_ptr<const Layout> make_layout(const Json& json) {
    const std::string where = "bundle.json.layout";
    object_of(json, where);
    const Json* kind = json.find("kind");
    std::string known;
    for (const auto& entry : kinds) {
        if (kind != nullptr && kind->text() != nullptr && *kind->text() == entry.name)
            return entry.make(json, where);
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
    }
    throw BundleError(where + ".kind is " + (kind == nullptr ? "None" : python_repr(*kind)) +
                      ", expected one of " + known +
                      ": upgrade the runtime, or build the bundle with an exporter of this version");
}

}  // namespace fopru
