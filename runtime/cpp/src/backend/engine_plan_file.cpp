// The plan as JSON: runtime/tensorrt/plan.py's `EnginePlan.from_dict`.
#include "backend/engine_plan.h"
#include "base/error.h"
#include "bundle/decode.h"

namespace fopru {

namespace {

void read_limits(const Json& json, const std::string& where, EngineLimits& out) {
    read_record(
        json, where,
        {optional_field("max_images", out.max_images), optional_field("max_prompt", out.max_prompt),
         optional_field("max_new_tokens", out.max_new_tokens), optional_field("ratio", out.ratio),
         optional_field("max_ratio", out.max_ratio), optional_field("max_image_tokens", out.max_image_tokens),
         optional_field("unpruned", out.unpruned)});
    out.check();
}

void read_visual(const Json& json, const std::string& where, VisualSizes& out) {
    read_record(json, where,
                {required_field("units", out.units), required_field("most_units", out.most_units),
                 required_field("tokens", out.tokens), required_field("most_tokens", out.most_tokens),
                 required_field("rows", out.rows), required_field("most_rows", out.most_rows),
                 required_field("columns", out.columns), optional_field("windows", out.windows),
                 optional_field("most_windows", out.most_windows)});
}

EngineProfile profile_from(const Json& json, const std::string& where) {
    EngineProfile made;
    for (const auto& [input, value] : object_of(json, where)) {
        InputProfile own;
        read_record(value, where + "." + input,
                    {required_field("minimum", own.minimum), required_field("optimum", own.optimum),
                     required_field("maximum", own.maximum), optional_field("values", own.values)});
        own.check();
        made.emplace_back(input, std::move(own));
    }
    return made;
}

void read_profiles(const Json& json, const std::string& where, std::vector<EngineProfile>& out) {
    const Json::Array& items = list_of(json, where);
    for (std::size_t at = 0; at < items.size(); ++at) {
        out.push_back(profile_from(items[at], where + "[" + std::to_string(at) + "]"));
    }
}

void read_graphs(const Json& json, const std::string& where, std::vector<GraphPlan>& out) {
    const Json::Array& items = list_of(json, where);
    for (std::size_t at = 0; at < items.size(); ++at) {
        GraphPlan own;
        const Field profiles = {"profiles", true, [&own](const Json& value, const std::string& place) {
                                    read_profiles(value, place, own.profiles);
                                }};
        read_record(items[at], where + "[" + std::to_string(at) + "]",
                    {required_field("graph", own.graph), required_field("file", own.file),
                     required_field("precision", own.precision), profiles,
                     optional_field("profile_names", own.profile_names)});
        out.push_back(std::move(own));
    }
}

template <class T>
Field field_with(const char* name, void (*read)(const Json&, const std::string&, T&), T& out) {
    return {name, true,
            [read, &out](const Json& value, const std::string& where) { read(value, where, out); }};
}

}  // namespace

EnginePlan read_engine_plan(const Json& json, const std::string& where) {
    EnginePlan plan;
    try {
        read_record(
            json, where,
            {field_with("limits", read_limits, plan.limits), field_with("visual", read_visual, plan.visual),
             required_field("capacity", plan.capacity), required_field("workspace", plan.workspace),
             required_field("level", plan.level), field_with("graphs", read_graphs, plan.graphs)});
    } catch (const BundleError& error) {
        const std::string text = error.what();
        throw EngineError(text.substr(0, text.rfind(": ")) +
                          ": build the engines again with `python -m runtime.engine`");
    }
    return plan;
}

}  // namespace fopru
