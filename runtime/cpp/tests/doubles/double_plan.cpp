#include "double_plan.h"

#include "base/json.h"
#include "double_graph.h"

namespace fopru_double {

namespace {

Range read_range(const fopru::Json& json, const Dims& shape) {
    Range range;
    const fopru::Json::Array& points = *json.array();
    if (points.front().integer() != nullptr) {  // [least, most] of each of a tensor's values
        const Dims least(static_cast<std::size_t>(shape.empty() ? 1 : shape[0]), *points.front().integer());
        const Dims most(least.size(), *points.back().integer());
        return {{least, most, most}};
    }
    for (std::size_t point = 0; point < 3; ++point) {
        for (const fopru::Json& dim : *points.at(point).array())
            range.points[point].push_back(*dim.integer());
    }
    return range;
}

}  // namespace

std::shared_ptr<const Plan> read_plan(const std::string& text) {
    const fopru::Json json = fopru::parse_json(text, "engine");
    auto plan = std::make_shared<Plan>();
    plan->toy = json.find("onnx") != nullptr ? make_graph(json) : make_toy(json);
    if (plan->toy == nullptr) return nullptr;
    plan->scratch = *json.find("scratch")->integer();
    for (const fopru::Json& profile : *json.find("profiles")->array()) {
        plan->profiles.emplace_back();
        for (const auto& [name, range] : *profile.object())
            plan->profiles.back()[name] = read_range(range, {});
    }
    if (const fopru::Json* values = json.find("values")) {
        for (const auto& [name, range] : *values->object()) {
            for (const ToyTensor& own : plan->toy->tensors()) {
                if (own.name == name) plan->values[name] = read_range(range, own.dims);
            }
        }
    }
    for (const auto& [name, range] : plan->values) {
        for (int point = 0; point < 3; ++point) {
            plan->narrow[point][name].assign(range.points[point].begin(), range.points[point].end());
        }
    }
    return plan;
}

}  // namespace fopru_double
