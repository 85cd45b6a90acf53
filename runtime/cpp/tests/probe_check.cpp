// Comparisons of golden tensors on JSON lines: {"reference", "measured": .npz files, "units", "precisions",
// "parity"}. The answer is the report, as JSON and as a table.
#include "base/file.h"
#include "base/npz.h"
#include "check/costs.h"
#include "check/parity.h"
#include "probe_lines.h"

using namespace fopru;
using namespace fopru::probe;

namespace {

Tensors tensors_of(const std::string& file) {
    const MappedFile mapped(file);
    Tensors tensors;
    for (const auto& [name, array] : parse_npz(mapped.bytes())) {
        tensors.set(name, array.dtype == "int64" ? integer_tensor(array.shape, array.integers())
                                                 : float_tensor(array.shape, array.floats()));
    }
    return tensors;
}

std::optional<UnitScores> units_of(const Json& json) {
    if (json.is_null()) return std::nullopt;
    UnitScores units;
    units.tokens = wholes(member(json, "tokens"));
    if (!member(json, "columns").is_null()) units.columns = wholes(member(json, "columns"));
    return units;
}

Json compared(const Json& request) {
    ParityReport report =
        compare(tensors_of(text(member(request, "reference"))), tensors_of(text(member(request, "measured"))),
                units_of(member(request, "units")));
    std::map<std::string, std::string> precisions;
    for (const auto& [graph, precision] : *member(request, "precisions").object())
        precisions[graph] = text(precision);
    report = judged(report, precisions, member(request, "parity"));
    return Json(Json::Object{{"report", to_json(report)}, {"table", format_report(report)}});
}

}  // namespace

int main() { return answer_lines(compared); }
