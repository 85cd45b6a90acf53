// How a comparison is written: JSON for programs, a table for people.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/python_text.h"
#include "check/parity.h"

namespace fopru {
namespace {

Json number_or_null(const std::optional<double>& value) {
    return value && std::isfinite(*value) ? Json(*value) : Json(nullptr);
}

Json to_json(const StageResult& stage) {
    return Json(Json::Object{
        {"name", stage.name},
        {"max_abs_diff", number_or_null(stage.max_abs_diff)},
        {"tolerance", std::isfinite(stage.tolerance) ? stage.tolerance : 0.0},
        {"reason", stage.reason},
        {"ok", stage.ok},
        {"detail", stage.detail},
        {"skipped", stage.skipped},
        {"cosine", number_or_null(stage.cosine)},
        {"gain", number_or_null(stage.gain)},
        {"chosen", number_or_null(stage.chosen)},
    });
}

// Padded with spaces to a width in characters; stage names are ASCII but for what a bundle may call a graph.
std::string left(const std::string& text, std::size_t width) {
    const std::size_t have = characters(text);
    return have < width ? text + std::string(width - have, ' ') : text;
}

std::string right(const std::string& text, std::size_t width) {
    return text.size() < width ? std::string(width - text.size(), ' ') + text : text;
}

}  // namespace

std::string printed(const char* format, double value) {
    if (std::isnan(value)) return "nan";  // C may write "-nan"
    char buffer[64];
    const int length = std::snprintf(buffer, sizeof buffer, format, value);
    return length < 0 ? "" : std::string(buffer, std::min<std::size_t>(static_cast<std::size_t>(length), 63));
}

Json to_json(const ParityReport& report) {
    Json::Array stages;
    for (const StageResult& stage : report.stages) stages.push_back(to_json(stage));
    const std::optional<std::string> first = report.first_divergence();
    return Json(Json::Object{
        {"ok", report.ok()},
        {"first_divergence", first ? Json(*first) : Json(nullptr)},
        {"stages", Json(std::move(stages))},
    });
}

std::string format_report(const ParityReport& report) {
    std::string text = left("stage", 16) + right("difference", 11) + right("tolerance", 11) + "  " +
                       left("result", 9) + "why this tolerance";
    bool priced = false;
    for (const StageResult& stage : report.stages) {
        const std::string difference = stage.max_abs_diff ? printed("%.1e", *stage.max_abs_diff) : "-";
        const std::string tolerance = stage.tolerance == 0.0 ? "exact" : printed("%.1e", stage.tolerance);
        const std::string verdict = stage.skipped ? "skipped" : stage.ok ? "ok" : "DIFFERS";
        text += "\n" + left(stage.name, 16) + right(difference, 11) + right(tolerance, 11) + "  " +
                left(verdict, 9) + stage.reason;
        if (!stage.detail.empty()) text += "\n" + std::string(16, ' ') + stage.detail;
        priced = priced || stage.detail.find(" costs ") != std::string::npos;  // see costs.cpp
    }
    const std::optional<std::string> first = report.first_divergence();
    if (first) return text + "\nfirst stage that diverges: " + *first;
    return text + "\nevery stage agrees with the reference" +
           (priced ? ", or costs what its precision may" : "");
}

}  // namespace fopru
