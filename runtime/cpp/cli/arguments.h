// The options of a command, each declared once: its name, the variable it sets (whose type says what it
// takes, and whose value is the default), and its help. Parsing, messages and `--help` all come from that
// table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace fopru::cli {

// What an option sets. A vector of texts takes one more each time; numbers are given as "1,0.3,0.1".
using Target = std::variant<bool*, std::string*, std::int64_t*, std::uint64_t*, double*,
                            std::optional<std::string>*, std::optional<std::int64_t>*, std::optional<double>*,
                            std::vector<std::string>*, std::vector<double>*>;

struct Option {
    const char* name;  // "--ratio"
    Target target;
    const char* metavar;  // "" for a switch
    std::string help;
};

// The variables that options point to must outlive it.
struct Command {
    const char* name;
    const char* summary;
    std::string* bundle;  // the one argument that is no option
    std::vector<Option> options;
    const char* epilog = "";
};

// Sets what the arguments say, `--option value` or `--option=value`. Returns the help where they ask for it:
// then nothing is to be done but to print it. RequestError: an unknown option, a value missing or of another
// kind, no bundle.
std::optional<std::string> parse(const Command& command, const std::vector<std::string>& arguments);

std::optional<double> number_of(const std::string& text);  // as Python's float(), without "1_000"
std::string printed_number(double value);                  // "1", "0.3"
std::string nearest(const std::string& name, const std::vector<std::string>& known);

}  // namespace fopru::cli
