// A small JSON value with bounds: what a bundle's JSON files are read into, and what results are written
// from. The parser behind it is nlohmann's, in json.cpp alone, so that nothing else pays for its headers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace fopru {

// Immutable once parsed. Copies are deep; move where a value is large. Keys of an object keep their order,
// which is that of the text.
class Json {
public:
    using Array = std::vector<Json>;
    using Object = std::vector<std::pair<std::string, Json>>;
    using Value = std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object>;

    Json() : value_(nullptr) {}
    Json(std::nullptr_t) : value_(nullptr) {}
    Json(bool value) : value_(value) {}
    Json(int value) : value_(static_cast<std::int64_t>(value)) {}
    Json(std::int64_t value) : value_(value) {}
    Json(double value) : value_(value) {}
    Json(const char* text) : value_(std::string(text)) {}
    Json(std::string text) : value_(std::move(text)) {}
    Json(Array items) : value_(std::move(items)) {}
    Json(Object members) : value_(std::move(members)) {}
    // By assignment: where memory ends in the middle, the copy constructor of libstdc++'s variant (12)
    // destroys what it has not made.
    Json(const Json& other) { value_ = other.value_; }
    Json(Json&&) noexcept = default;
    Json& operator=(const Json&) = default;
    Json& operator=(Json&&) noexcept = default;
    ~Json() = default;

    bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
    // Pointers are null where the value is of another type. An integer is not a double here: `number` takes
    // both.
    const bool* boolean() const { return std::get_if<bool>(&value_); }
    const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value_); }
    const std::string* text() const { return std::get_if<std::string>(&value_); }
    const Array* array() const { return std::get_if<Array>(&value_); }
    const Object* object() const { return std::get_if<Object>(&value_); }
    bool number(double& out) const;
    // The member of an object, null where there is none or this is no object. The first of equal keys never
    // matters: `parse_json` refuses them.
    const Json* find(std::string_view key) const;
    const Value& value() const { return value_; }
    // For whoever builds a value; null as above.
    Array* mutable_array() { return std::get_if<Array>(&value_); }
    Object* mutable_object() { return std::get_if<Object>(&value_); }

    // As Python's `json.dumps(ensure_ascii=False)` writes it: on one line with indent 0, else over lines.
    // Numbers that are not finite are written as null.
    std::string dump(int indent = 0) const;

private:
    Value value_;
};

// Limits of a text from outside.
struct JsonLimits {
    std::size_t bytes = std::size_t{256} << 20;
    int depth = 64;
    std::size_t values = std::size_t{8} << 20;  // of the whole text: a value takes more memory than "[],"
};

// Throws BundleError: not JSON, not UTF-8, a key twice, an integer beyond 64 bits, deeper or longer than the
// limits. `name` is what the message calls it, such as "bundle.json".
Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits = {});

}  // namespace fopru
