#include "arguments.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "base/python_text.h"

namespace fopru::cli {
namespace {

std::string stripped(const std::string& text) {
    const char* spaces = " \t\n\v\f\r";
    const std::size_t first = text.find_first_not_of(spaces);
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(spaces) - first + 1);
}

template <class T>
std::optional<T> read_as(const std::string& text) {
    const std::string plain = stripped(text);
    const char* begin = plain.data();
    const char* end = begin + plain.size();
    if (begin != end && *begin == '+' && plain.compare(1, 1, "-") != 0) ++begin;
    T value{};
    const auto read = std::from_chars(begin, end, value);
    if (begin == end || read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return value;
}

RequestError wrong_value(const Option& option, const std::string& value, const char* expected) {
    return RequestError(std::string(option.name) + " is " + python_repr(value) + ", expected " + expected +
                        ": see --help");
}

std::int64_t whole_of(const Option& option, const std::string& value) {
    const auto read = read_as<std::int64_t>(value);
    if (!read) throw wrong_value(option, value, "a whole number");
    return *read;
}

std::uint64_t unsigned_of(const Option& option, const std::string& value) {
    if (const auto read = read_as<std::uint64_t>(value)) return *read;
    const auto negative = read_as<std::int64_t>(value);
    if (!negative) throw wrong_value(option, value, "a whole number below 2^64");
    throw RequestError(std::string(option.name + 2) + " is " + std::to_string(*negative) +
                       ", expected 0 or a positive integer");
}

double real_of(const Option& option, const std::string& value) {
    const auto read = number_of(value);
    if (!read) throw wrong_value(option, value, "a number");
    return *read;
}

std::vector<double> reals_of(const Option& option, const std::string& value) {
    std::vector<double> found;
    for (std::size_t start = 0; start <= value.size();) {
        const std::size_t end = std::min(value.find(',', start), value.size());
        found.push_back(real_of(option, value.substr(start, end - start)));
        start = end + 1;
    }
    return found;
}

// Puts the value of an option into its target.
struct Assign {
    const Option& option;
    const std::string& value;

    void operator()(bool* target) const { *target = true; }
    void operator()(std::string* target) const { *target = value; }
    void operator()(std::int64_t* target) const { *target = whole_of(option, value); }
    void operator()(std::uint64_t* target) const { *target = unsigned_of(option, value); }
    void operator()(double* target) const { *target = real_of(option, value); }
    void operator()(std::optional<std::string>* target) const { *target = value; }
    void operator()(std::optional<std::int64_t>* target) const { *target = whole_of(option, value); }
    void operator()(std::optional<double>* target) const { *target = real_of(option, value); }
    void operator()(std::vector<std::string>* target) const { target->push_back(value); }
    void operator()(std::vector<double>* target) const { *target = reals_of(option, value); }
};

void assign(const Option& option, const std::string& value) {
    std::visit(Assign{option, value}, option.target);
}

// The value of a target as the help shows it, empty where there is no default.
struct Shown {
    std::string operator()(const std::string* value) const { return *value; }
    std::string operator()(const std::int64_t* value) const { return std::to_string(*value); }
    std::string operator()(const std::uint64_t* value) const { return std::to_string(*value); }
    std::string operator()(const double* value) const { return python_float(*value); }
    std::string operator()(const std::vector<double>* values) const {
        std::vector<std::string> parts;
        for (const double value : *values) parts.push_back(printed_number(value));
        return joined(parts, ",");
    }
    template <class Other>
    std::string operator()(Other*) const {
        return "";
    }
};

std::string default_of(const Option& option) {
    const std::string text = std::visit([](const auto* target) { return Shown()(target); }, option.target);
    return text.empty() ? "" : " (default " + text + ")";
}

const Option* find(const Command& command, const std::string& name) {
    for (const Option& option : command.options) {
        if (name == option.name) return &option;
    }
    return nullptr;
}

const Option& known_option(const Command& command, const std::string& name) {
    if (const Option* found = find(command, name)) return *found;
    std::vector<std::string> names = {"--help"};
    for (const Option& option : command.options) names.push_back(option.name);
    throw RequestError("unknown option " + name + " of fopru " + command.name + ": did you mean " +
                       nearest(name, names) + "?");
}

std::size_t edits_between(const std::string& one, const std::string& other) {
    std::vector<std::size_t> row(other.size() + 1);
    for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= one.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j < row.size(); ++j) {
            const std::size_t replaced = diagonal + (one[i - 1] == other[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
        }
    }
    return row.back();
}

std::string help_of(const Command& command) {
    constexpr std::size_t column = 28, width = 100;
    std::string text = "usage: fopru " + std::string(command.name) + " BUNDLE [options]\n\n" +
                       command.summary + "\n\n  BUNDLE                    directory with bundle.json\n";
    for (const Option& option : command.options) {
        std::string line = std::string("  ") + option.name + (*option.metavar ? " " : "") + option.metavar;
        line = line.size() + 1 < column ? line + std::string(column - line.size(), ' ')
                                        : line + "\n" + std::string(column, ' ');
        std::size_t used = column;
        const std::string help = option.help + default_of(option);
        for (std::size_t start = 0; start < help.size();) {
            const std::size_t end = std::min(help.find(' ', start), help.size());
            if (used > column && used + 1 + (end - start) > width) {
                line += "\n" + std::string(column, ' ');
                used = column;
            }
            if (used > column) line += ' ';
            line.append(help, start, end - start);
            used += end - start + (used > column ? 1 : 0);
            start = end + 1;
        }
        text += line + "\n";
    }
    return text + "  --help                    this text\n" + command.epilog;
}

}  // namespace

std::optional<double> number_of(const std::string& text) { return read_as<double>(text); }

std::string printed_number(double value) {
    const std::string text = python_float(value);
    return text.size() > 2 && text.compare(text.size() - 2, 2, ".0") == 0 ? text.substr(0, text.size() - 2)
                                                                          : text;
}

std::string nearest(const std::string& name, const std::vector<std::string>& known) {
    std::string best;
    std::pair<std::size_t, std::size_t> least;  // edits; letters of the name behind what both begin with
    const std::string shortened = name.substr(0, 64);  // longer than any name: the work stays small
    for (const std::string& each : known) {
        const auto common = std::mismatch(shortened.begin(), shortened.end(), each.begin(), each.end()).first;
        const std::pair cost(edits_between(shortened, each),
                             static_cast<std::size_t>(shortened.end() - common));
        if (!best.empty() && cost >= least) continue;
        least = cost;
        best = each;
    }
    return best;
}

std::optional<std::string> parse(const Command& command, const std::vector<std::string>& arguments) {
    const std::string help = help_of(command);  // before values replace the defaults
    bool given = false, only_places = false;
    for (std::size_t at = 0; at < arguments.size(); ++at) {
        const std::string& argument = arguments[at];
        if (only_places || argument.size() < 2 || argument[0] != '-') {
            if (given) {
                throw RequestError("unexpected " + python_repr(argument) + " behind the bundle: fopru " +
                                   command.name + " takes one, and options");
            }
            *command.bundle = argument;
            given = true;
            continue;
        }
        if (argument == "--") {
            only_places = true;
            continue;
        }
        if (argument == "--help" || argument == "-h") return help;
        const std::size_t equals = argument.find('=');
        const Option& option = known_option(command, argument.substr(0, equals));
        const bool is_switch = std::holds_alternative<bool*>(option.target);
        if (is_switch && equals != std::string::npos) {
            throw RequestError(std::string(option.name) + " takes no value: leave out " +
                               python_repr(argument.substr(equals)));
        }
        if (is_switch || equals != std::string::npos) {
            assign(option, is_switch ? "" : argument.substr(equals + 1));
            continue;
        }
        // The value may look like a number below 0, or like anything but an option of this command.
        if (at + 1 == arguments.size() || find(command, arguments[at + 1]) != nullptr) {
            throw RequestError(std::string(option.name) + " lacks its value: give " + option.name + " " +
                               option.metavar);
        }
        assign(option, arguments[++at]);
    }
    if (!given) throw RequestError("there is no bundle: fopru " + std::string(command.name) + " BUNDLE");
    return std::nullopt;
}

}  // namespace fopru::cli
