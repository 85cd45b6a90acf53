// `fopru`: bundles from the command line.
#include <cstdlib>
#include <string>
#include <vector>

#include "arguments.h"
#include "base/error.h"
#include "base/python_text.h"
#include "base/version.h"
#include "commands.h"
#include "output.h"

namespace fopru::cli {
namespace {

struct Entry {
    const char* name;
    int (*run)(const Arguments&);
    const char* summary;
};

constexpr Entry commands[] = {
    {"run", run_command, "answer a prompt about images"},
    {"check", check_command, "check the files, then replay the golden tensors on this device"},
    {"info", info_command, "what a bundle holds, and which libraries there are"},
    {"bench", bench_command, "time to first token, speed and memory at several ratios"},
};

std::string usage() {
    std::string text = "usage: fopru COMMAND BUNDLE [options]\n\n";
    for (const Entry& each : commands) {
        text += "  " + std::string(each.name) + std::string(8 - std::string(each.name).size(), ' ') +
                each.summary + "\n";
    }
    return text +
           "\n`fopru COMMAND --help` lists the options of a command, `fopru --version` says the version.\n";
}

int dispatch(const Arguments& arguments) {
    const std::string name = arguments.empty() ? "--help" : arguments.front();
    if (name == "--help" || name == "-h" || name == "help") {
        write_out(usage());
        return arguments.empty() ? code_error : code_done;
    }
    if (name == "--version") {
        write_out(std::string("fopru ") + library_version() + "\n");
        return code_done;
    }
    std::vector<std::string> names;
    for (const Entry& each : commands) {
        if (name == each.name) return each.run({arguments.begin() + 1, arguments.end()});
        names.emplace_back(each.name);
    }
    throw RequestError("unknown command " + python_repr(name) + ", expected one of " + joined(names) +
                       ": did you mean " + nearest(name, names) + "?");
}

}  // namespace
}  // namespace fopru::cli

int main(int argc, char** argv) {
    using namespace fopru::cli;
    // ONNX Runtime 1.29 and later reports what it runs to its maker, and keeps an identifier of the device
    // under ~/.cache. Not from here, unless the caller says ORT_DISABLE_TELEMETRY=0.
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    watch_signals();
    const Arguments arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
    const int code = exit_code_of([&] { return dispatch(arguments); });
    // All output is flushed. The tables of ONNX Runtime would take milliseconds to free.
    std::_Exit(code);
}
