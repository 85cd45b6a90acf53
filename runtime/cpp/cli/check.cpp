// `fopru check`: replay the bundle's golden tensors on this device. runtime/check.py.
#include "check/check.h"

#include "check/golden.h"
#include "commands.h"
#include "output.h"
#include "session.h"

namespace fopru::cli {
namespace {

struct CheckOptions {
    std::string bundle;
    DeviceOptions device;
    bool json = false;

    Command command() {
        Command found{
            "check",
            "Check every file, then replay the bundle's golden tensors on this device, stage by stage.\n"
            "Exit codes: 0 all stages agree, 1 one diverges, 2 it could not run.",
            &bundle,
            {}};
        found.options.push_back({"--json", &json, "", "print one JSON object instead of the table"});
        device.declare(found.options);
        return found;
    }
};

}  // namespace

int check_command(const Arguments& arguments) {
    CheckOptions options;
    if (const auto help = parse(options.command(), arguments)) {
        write_out(*help);
        return code_done;
    }
    const auto bundle = Bundle::open(options.bundle, true);
    const ParityReport report = check_bundle(bundle, options.device.generator());
    if (options.json) {
        Json::Object record = {{"bundle", bundle->path()}};
        const Json stages = to_json(report);
        record.insert(record.end(), stages.object()->begin(), stages.object()->end());
        write_out(Json(std::move(record)).dump(2) + "\n");
    } else {
        write_out(bundle->path() + ": " + bundle->manifest().model.name + " against " +
                  load_record(*bundle).reference + "\n" + format_report(report) + "\n");
    }
    return report.ok() ? code_done : code_differs;
}

}  // namespace fopru::cli
