#include "double_plan.h"

#include "base/json.h"

namespace fopru_double {

namespace {

Range read_range(const fopru::Json& json) {
    Range range;
    for (std::size_t point = 0; point < 3; ++point) {
        for (const fopru::Json& dim : *json.array()->at(point).array())
            range.points[point].push_back(*dim.integer());
    }
    return range;
}

}  // namespace

std::shared_ptr<const Plan> read_plan(const std::string& text) {
    const fopru::Json json = fopru::parse_json(text, "engine");
    auto plan = std::make_shared<Plan>();
    plan->toy = make_toy(json);
    if (plan->toy == nullptr) return nullptr;
    plan->scratch = *json.find("scratch")->integer();
    for (const fopru::Json& profile : *json.find("profiles")->array()) {
        plan->profiles.emplace_back();
        for (const auto& [name, range] : *profile.object()) plan->profiles.back()[name] = read_range(range);
    }
    if (const fopru::Json* values = json.find("values")) {
        for (const auto& [name, range] : *values->object()) plan->values[name] = read_range(range);
    }
    for (const auto& [name, range] : plan->values) {
        for (int point = 0; point < 3; ++point) {
            plan->narrow[point][name].assign(range.points[point].begin(), range.points[point].end());
        }
    }
    return plan;
}

}  // namespace fopru_double
