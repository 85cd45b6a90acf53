// Whole answers of the TensorRT backend on the make-believe GPU, for tests/test_cpp_tensorrt_answers.py:
// probe_answers BUNDLE ENGINES reuse_features reuse_prefix. Lines are those of probe_generate; besides, "set"
// sets the device, and "device" says what was done on it since it was last asked.
#include <cstdlib>
#include <optional>

#include "double_device.h"
#include "requests.h"

using fopru::Json;
using fopru_double::device;
using namespace fopru::probe;

namespace {

Json seen() {
    Json::Object counts;
    for (const auto& [name, count] : device().counts) counts.emplace_back(name, count);
    Json::Array sizes, violations;
    for (const std::size_t bytes : device().to_host) sizes.emplace_back(static_cast<std::int64_t>(bytes));
    for (const std::string& what : device().violations) violations.emplace_back(what);
    device().to_host.clear();
    return Json::Object{{"counts", counts},
                        {"to_host", sizes},
                        {"violations", violations},
                        {"used", static_cast<std::int64_t>(device().used())},
                        {"recorded", static_cast<std::int64_t>(device().launches.size())}};
}

void set(const Json& line) {
    if (const Json* value = line.find("unrecordable")) device().unrecordable = *value->boolean();
    if (const Json* value = line.find("coherent")) device().coherent = *value->boolean();
    if (const Json* value = line.find("free")) {
        device().total = device().used() + static_cast<std::size_t>(whole(*value));
    }
}

// What was not given back, and what must never be done.
int ended() {
    const fopru_double::Device& own = device();
    for (const std::string& what : own.violations) std::cerr << what << "\n";
    const bool left = own.blocks() != 0 || !own.pinned.empty() || !own.streams.empty() ||
                      !own.graphs.empty() || !own.launches.empty();
    if (left) std::cerr << "something is left on the device\n";
    return left || !own.violations.empty() ? 1 : 0;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) return 2;
    fopru_options options = fopru_options_default();
    options.backend = "tensorrt";
    options.engines = arguments[2];
    options.reuse_features = std::strtoull(arguments[3], nullptr, 10);
    options.reuse_prefix = std::atoi(arguments[4]);
    std::optional<Generator> generator;
    const int code = answer_lines([&](const Json& line) -> Json {
        const std::string& op = text(member(line, "op"));
        if (op == "device") return seen();
        if (op == "set") {
            set(line);
            return {};
        }
        try {
            if (!generator) generator.emplace(opened(arguments[1], options));
        } catch (const Failed& failed) {
            return Json::Object{{"status", static_cast<int>(failed.status)}, {"message", fopru_last_error()}};
        }
        return answered(generator->get(), line);
    });
    generator.reset();
    return code != 0 ? code : ended();
}
