// Layouts on JSON lines: {"layout", "sizes"} gives the plans of sizes [height, width]; {"layout",
// "preprocess", "picture", "pixels", "height", "width"} reads RGB bytes from a file, and writes pixel values
// as float32 into another.
#include <cstring>
#include <fstream>

#include "base/sha256.h"
#include "layout/layout.h"
#include "probe_lines.h"

using namespace fopru;
using namespace fopru::probe;

namespace {

// Long lists go as their hash: of int64, little-endian.
Json hash_of(const std::vector<std::int64_t>& values) {
    std::string bytes(values.size() * sizeof(std::int64_t), '\0');
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return Json(Json::Array{Json(static_cast<std::int64_t>(values.size())), Json(sha256(bytes))});
}

Json unit_of(const Unit& unit) {
    Json valid;
    if (unit.valid) valid = list_of(std::vector<int>(unit.valid->begin(), unit.valid->end()));
    return Json(Json::Array{Json(unit.tokens), grid_of(unit.grid), valid, grid_of(unit.valid_grid()),
                            Json(unit.prunable()), hash_of(unit.valid_indices())});
}

Json plan_of(const ImagePlan& plan) {
    Json::Array units;
    for (const auto& unit : plan.units) units.push_back(unit_of(unit));
    Json::Object inputs;
    for (const auto& [name, input] : plan.inputs) {
        inputs.emplace_back(name, Json(Json::Array{list_of(input.shape), hash_of(input.values)}));
    }
    return Json(Json::Object{{"units", Json(units)},
                             {"text", Json(plan.text)},
                             {"runs", list_of(plan.runs)},
                             {"sequence", hash_of(plan.sequence)},
                             {"axes", Json(plan.axes)},
                             {"offsets", hash_of(plan.offsets)},
                             {"spans", list_of(plan.spans)},
                             {"lines", plan.lines ? hash_of(*plan.lines) : Json()},
                             {"inputs", Json(inputs)},
                             {"overview", plan.overview ? Json(*plan.overview) : Json()},
                             {"mosaic", grid_of(plan.mosaic)},
                             {"placeholders", Json(plan.placeholders())},
                             {"prunable", Json(plan.prunable())}});
}

Json optional_of(const std::optional<std::int64_t>& value) { return value ? Json(*value) : Json(); }

Json facts_of(const Layout& layout) {
    Json::Array inputs;
    for (const auto& input : layout.extra_inputs()) {
        inputs.push_back(Json(Json::Array{Json(input.name), Json(input.dtype), list_of(input.shape)}));
    }
    return Json(Json::Object{{"kind", Json(layout.kind())},
                             {"prefix", Json(layout.prefix_tokens())},
                             {"axes", Json(layout.position_axes())},
                             {"masked", Json(layout.masked())},
                             {"newlines", Json(layout.has_newlines())},
                             {"has_grid", Json(layout.has_grid())},
                             {"unit_tokens", optional_of(layout.unit_tokens())},
                             {"image_tokens", optional_of(layout.image_tokens())},
                             {"unit_grid", grid_of(layout.unit_grid())},
                             {"pixel_shape", list_of(layout.pixel_shape())},
                             {"extra_inputs", Json(inputs)}});
}

Json plans_of(const Layout& layout, const Json& sizes) {
    Json::Array plans;
    for (const auto& size : lists(sizes)) {
        plans.push_back(answer_of([&] {
            return plan_of(layout.plan(static_cast<int>(size.at(0)), static_cast<int>(size.at(1))));
        }));
    }
    return Json(Json::Object{{"facts", facts_of(layout)}, {"plans", Json(plans)}});
}

Preprocess preprocess_of(const Json& json) {
    Preprocess config;
    config.resample = static_cast<int>(whole(member(json, "resample")));
    config.rescale_factor = real(member(json, "rescale_factor"));
    for (std::size_t i = 0; i < 3; ++i) {
        config.mean[i] = real(items(member(json, "mean")).at(i));
        config.std[i] = real(items(member(json, "std")).at(i));
    }
    return config;
}

Json pixels_of(const Layout& layout, const Json& request) {
    Image image(static_cast<int>(whole(member(request, "height"))),
                static_cast<int>(whole(member(request, "width"))));
    std::ifstream in(text(member(request, "picture")), std::ios::binary);
    in.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!in) throw std::runtime_error("the picture is shorter than its size says");
    const auto prepared = prepare(image, layout, preprocess_of(member(request, "preprocess")));
    std::ofstream out(text(member(request, "pixels")), std::ios::binary);
    out.write(reinterpret_cast<const char*>(prepared.pixels.values.data()),
              static_cast<std::streamsize>(prepared.pixels.values.size() * sizeof(float)));
    return Json(Json::Object{{"shape", list_of(prepared.pixels.shape)}});
}

}  // namespace

int main() {
    return answer_lines([](const Json& request) {
        const auto layout = make_layout(member(request, "layout"));
        return request.find("picture") ? pixels_of(*layout, request)
                                       : plans_of(*layout, member(request, "sizes"));
    });
}
