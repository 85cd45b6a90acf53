#include "base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/python_text.h"
#include "base/utf8_check.h"

namespace fopru {

namespace {

constexpr std::size_t most_shown = 200;  // characters of what the parser says

// Builds `Json` from the events of nlohmann's parser, which itself does not recurse, and enforces the limits.
class Builder {
public:
    Builder(const std::string& name, const JsonLimits& limits) : name_(name), limits_(limits) {}

    bool null() { return add(Json()); }
    bool boolean(bool value) { return add(Json(value)); }
    bool number_integer(std::int64_t value) { return add(Json(value)); }
    bool number_unsigned(std::uint64_t value) {
        if (value > static_cast<std::uint64_t>(INT64_MAX)) too_wide(std::to_string(value));
        return add(Json(static_cast<std::int64_t>(value)));
    }
    bool number_float(double value, const std::string& text) {
        if (text.find_first_of(".eE") == std::string::npos) too_wide(text);  // no double was written
        return add(Json(value));
    }
    bool string(std::string& value) { return add(Json(std::move(value))); }
    bool binary(std::vector<std::uint8_t>&) { return false; }  // of other formats than JSON

    bool start_object(std::size_t) { return open(Json(Json::Object())); }
    bool key(std::string& value) {
        keys_.back() = std::move(value);
        return true;
    }
    bool end_object() {
        Json value = close();
        check_keys(*value.object());
        return add(std::move(value));
    }
    bool start_array(std::size_t) { return open(Json(Json::Array())); }
    bool end_array() { return add(close()); }

    bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) {
        // "[json.exception.parse_error.101] parse error at ...; last read: '...'" without the brackets and
        // what was read, which may be long, and no UTF-8.
        std::string text = error.what();
        std::size_t begin = text.find("] ");
        text = text.substr(begin == std::string::npos ? 0 : begin + 2);
        text = first_characters(text.substr(0, text.find("; last read: ")), most_shown);
        refuse(first_bad_utf8(text) == std::string::npos ? text : "it cannot be read");
    }

    Json take() { return std::move(result_); }

    [[noreturn]] void refuse(const std::string& why) const {
        throw BundleError(name_ + " is not JSON (" + why + "): " + rebuild_bundle);
    }

private:
    bool open(Json container) {
        if (open_.size() >= static_cast<std::size_t>(limits_.depth)) {
            refuse("it is nested deeper than " + std::to_string(limits_.depth));
        }
        open_.push_back(std::move(container));
        keys_.emplace_back();
        return true;
    }

    Json close() {
        Json value = std::move(open_.back());
        open_.pop_back();
        keys_.pop_back();
        return value;
    }

    bool add(Json value) {
        if (++values_ > limits_.values) {
            refuse("it has more than " + std::to_string(limits_.values) + " values");
        }
        if (open_.empty()) {
            result_ = std::move(value);
        } else if (Json::Array* items = open_.back().mutable_array()) {
            items->push_back(std::move(value));
        } else {
            open_.back().mutable_object()->emplace_back(std::move(keys_.back()), std::move(value));
        }
        return true;
    }

    // Sorted once per object: looking each key up while it grows would be quadratic.
    void check_keys(const Json::Object& members) const {
        std::vector<std::string_view> names;
        names.reserve(members.size());
        for (const auto& member : members) names.emplace_back(member.first);
        std::sort(names.begin(), names.end());
        auto twice = std::adjacent_find(names.begin(), names.end());
        if (twice != names.end())
            refuse("it has the key " + python_repr(Json(std::string(*twice))) + " twice");
    }

    [[noreturn]] void too_wide(const std::string& digits) const {
        refuse("the integer " + digits.substr(0, 60) + " has more than 64 bits");
    }

    const std::string& name_;
    const JsonLimits& limits_;
    std::vector<Json> open_;         // containers from the outermost to the innermost
    std::vector<std::string> keys_;  // of each, the key whose value comes next
    std::size_t values_ = 0;
    Json result_;
};

void write_text(std::string& out, const std::string& text) {
    static constexpr char hex[] = "0123456789abcdef";
    out += '"';
    for (char c : text) {
        switch (c) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                if (static_cast<unsigned char>(c) < 0x20) {
                    out += "\\u00";
                    out += hex[(c >> 4) & 15];
                    out += hex[c & 15];
                } else {
                    out += c;
                }
        }
    }
    out += '"';
}

class Writer {
public:
    explicit Writer(int indent) : indent_(indent) {}

    void write(const Json& value) {
        if (const bool* flag = value.boolean()) {
            out_ += *flag ? "true" : "false";
        } else if (const std::int64_t* whole = value.integer()) {
            out_ += std::to_string(*whole);
        } else if (const std::string* text = value.text()) {
            write_text(out_, *text);
        } else if (const Json::Array* items = value.array()) {
            write_items(*items);
        } else if (const Json::Object* members = value.object()) {
            write_members(*members);
        } else {
            double number = 0.0;
            bool finite = value.number(number) && std::isfinite(number);
            out_ += finite ? python_float(number) : "null";
        }
    }

    std::string take() { return std::move(out_); }

private:
    void write_items(const Json::Array& items) {
        out_ += '[';
        ++depth_;
        for (std::size_t at = 0; at < items.size(); ++at) {
            begin(at);
            write(items[at]);
        }
        end(!items.empty());
        out_ += ']';
    }

    void write_members(const Json::Object& members) {
        out_ += '{';
        ++depth_;
        for (std::size_t at = 0; at < members.size(); ++at) {
            begin(at);
            write_text(out_, members[at].first);
            out_ += ": ";
            write(members[at].second);
        }
        end(!members.empty());
        out_ += '}';
    }

    void begin(std::size_t at) {
        if (at > 0) out_ += indent_ > 0 ? "," : ", ";
        line(indent_ > 0);
    }

    void end(bool filled) {
        --depth_;
        line(filled && indent_ > 0);
    }

    void line(bool wanted) {
        if (wanted) out_.append("\n").append(static_cast<std::size_t>(indent_ * depth_), ' ');
    }

    int indent_;
    int depth_ = 0;
    std::string out_;
};

}  // namespace

bool Json::number(double& out) const {
    if (const std::int64_t* whole = integer()) {
        out = static_cast<double>(*whole);
        return true;
    }
    if (const double* real = std::get_if<double>(&value_)) {
        out = *real;
        return true;
    }
    return false;
}

const Json* Json::find(std::string_view key) const {
    const Object* members = object();
    if (members == nullptr) return nullptr;
    for (const auto& member : *members) {
        if (member.first == key) return &member.second;
    }
    return nullptr;
}

std::string Json::dump(int indent) const {
    Writer writer(indent);
    writer.write(*this);
    return writer.take();
}

Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits) {
    Builder builder(name, limits);
    if (text.size() > limits.bytes) {
        builder.refuse("it has " + std::to_string(text.size()) + " bytes, at most " +
                       std::to_string(limits.bytes) + " are read");
    }
    // The parser would skip a byte order mark, and take a zero byte for the end of the text.
    if (text.substr(0, 3) == "\xef\xbb\xbf") builder.refuse("it begins with a byte order mark");
    if (std::size_t at = text.find('\0'); at != std::string_view::npos) {
        builder.refuse("it has a zero byte at " + std::to_string(at));
    }
    if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) builder.refuse("it cannot be read");
    return builder.take();
}

}  // namespace fopru
