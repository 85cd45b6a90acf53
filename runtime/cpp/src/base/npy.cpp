#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <optional>

#include "base/checked.h"
#include "base/half.h"
#include "base/npz.h"
#include "base/python_text.h"

namespace fopru {

namespace {

struct Kind {
    const char* descr;
    const char* name;
    std::size_t bytes;
};

constexpr std::array<Kind, 12> kinds{{{"|b1", "bool", 1},
                                      {"|i1", "int8", 1},
                                      {"|u1", "uint8", 1},
                                      {"<i2", "int16", 2},
                                      {"<u2", "uint16", 2},
                                      {"<i4", "int32", 4},
                                      {"<u4", "uint32", 4},
                                      {"<i8", "int64", 8},
                                      {"<u8", "uint64", 8},
                                      {"<f2", "float16", 2},
                                      {"<f4", "float32", 4},
                                      {"<f8", "float64", 8}}};
constexpr std::size_t most_axes = 32;

// The header of an .npy: a Python dict such as {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
class Header {
public:
    explicit Header(std::string_view text) : text_(text) {
        take('{');
        while (!taken('}')) {
            std::string key = quoted();
            take(':');
            if (key == "descr") {
                descr = quoted();
            } else if (key == "fortran_order") {
                fortran = word() == "True";
            } else if (key == "shape") {
                read_shape();
            } else {
                fail("the unknown key " + python_repr(key));
            }
            if (!taken(',')) {
                take('}');
                break;
            }
        }
        if (descr.empty() || !shape_seen_) fail("no descr or no shape");
    }

    std::string descr;
    bool fortran = false;
    std::vector<std::int64_t> shape;

private:
    [[noreturn]] static void fail(const std::string& what) {
        throw NpzError("the header of an array has " + what);
    }

    void skip() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    }

    bool taken(char wanted) {
        skip();
        bool here = at_ < text_.size() && text_[at_] == wanted;
        at_ += here;
        return here;
    }

    void take(char wanted) {
        if (!taken(wanted)) fail(std::string("no ") + wanted + " where one is expected");
    }

    std::string quoted() {
        char quote = taken('\'') ? '\'' : '"';
        if (quote == '"') take('"');
        std::size_t end = text_.find(quote, at_);
        if (end == std::string_view::npos) fail("a text without an end");
        std::string out(text_.substr(at_, end - at_));
        at_ = end + 1;
        return out;
    }

    std::string word() {
        skip();
        std::size_t begin = at_;
        while (at_ < text_.size() && std::isalpha(static_cast<unsigned char>(text_[at_]))) ++at_;
        return std::string(text_.substr(begin, at_ - begin));
    }

    void read_shape() {
        shape.clear();
        shape_seen_ = true;
        take('(');
        while (!taken(')')) {
            skip();
            std::size_t begin = at_;
            while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
            if (at_ == begin || at_ - begin > 18) fail("a dim that is no number");
            if (shape.size() == most_axes) fail("too many axes");
            shape.push_back(std::stoll(std::string(text_.substr(begin, at_ - begin))));
            if (!taken(',')) {
                take(')');
                break;
            }
        }
    }

    std::string_view text_;
    std::size_t at_ = 0;
    bool shape_seen_ = false;
};

std::size_t item_bytes_of(const std::string& dtype) {
    for (const Kind& kind : kinds) {
        if (dtype == kind.name) return kind.bytes;
    }
    throw NpzError("an array has the dtype " + dtype);
}

// From Fortran order to C order.
std::vector<unsigned char> transposed(std::string_view from, const std::vector<std::int64_t>& shape,
                                      std::size_t item) {
    std::vector<unsigned char> out(from.size());
    std::vector<std::int64_t> index(shape.size(), 0);
    std::vector<std::size_t> steps(shape.size(), item);  // bytes in `from`
    for (std::size_t axis = 1; axis < shape.size(); ++axis) {
        steps[axis] = steps[axis - 1] * static_cast<std::size_t>(shape[axis - 1]);
    }
    for (std::size_t to = 0; to < out.size(); to += item) {
        std::size_t place = 0;
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            place += steps[axis] * static_cast<std::size_t>(index[axis]);
        }
        std::memcpy(&out[to], &from[place], item);
        for (std::size_t axis = shape.size(); axis-- > 0;) {
            if (++index[axis] < shape[axis]) break;
            index[axis] = 0;
        }
    }
    return out;
}

template <class T, class Out>
void convert(const NpyArray& array, std::vector<Out>& out) {
    for (std::size_t at = 0; at < out.size(); ++at) {
        T value;
        std::memcpy(&value, &array.bytes[at * sizeof value], sizeof value);
        out[at] = static_cast<Out>(value);
    }
}

template <class Out>
std::vector<Out> converted(const NpyArray& array) {
    std::vector<Out> out(array.elements());
    if (array.dtype == "bool" || array.dtype == "uint8") convert<std::uint8_t>(array, out);
    if (array.dtype == "int8") convert<std::int8_t>(array, out);
    if (array.dtype == "int16") convert<std::int16_t>(array, out);
    if (array.dtype == "uint16") convert<std::uint16_t>(array, out);
    if (array.dtype == "int32") convert<std::int32_t>(array, out);
    if (array.dtype == "uint32") convert<std::uint32_t>(array, out);
    if (array.dtype == "int64") convert<std::int64_t>(array, out);
    if (array.dtype == "uint64") convert<std::uint64_t>(array, out);
    if (array.dtype == "float32") convert<float>(array, out);
    if (array.dtype == "float64") convert<double>(array, out);
    if (array.dtype == "float16") {
        std::vector<std::uint16_t> bits(out.size());
        convert<std::uint16_t>(array, bits);
        std::transform(bits.begin(), bits.end(), out.begin(),
                       [](std::uint16_t half) { return static_cast<Out>(float_from_half(half)); });
    }
    return out;
}

}  // namespace

std::size_t NpyArray::elements() const { return bytes.size() / item_bytes_of(dtype); }
std::vector<float> NpyArray::floats() const { return converted<float>(*this); }
std::vector<double> NpyArray::doubles() const { return converted<double>(*this); }

std::vector<std::int64_t> NpyArray::integers() const {
    if (dtype.compare(0, 5, "float") == 0) throw NpzError("an array of " + dtype + " is not one of integers");
    return converted<std::int64_t>(*this);
}

NpyArray parse_npy(std::string_view bytes, std::size_t most_bytes) {
    auto byte = [&](std::size_t at) {
        return static_cast<std::size_t>(static_cast<unsigned char>(bytes[at]));
    };
    if (bytes.size() < 12 || bytes.substr(0, 6) != "\x93NUMPY")
        throw NpzError("an array is not in NumPy's format");
    bool wide = byte(6) >= 2;  // four bytes for the length of the header instead of two
    std::size_t begin = wide ? 12 : 10;
    std::size_t length = byte(8) | byte(9) << 8 | (wide ? byte(10) << 16 | byte(11) << 24 : 0);
    if (byte(6) < 1 || byte(6) > 3 || length > bytes.size() - begin) throw NpzError("an array is cut off");
    Header header(bytes.substr(begin, length));
    auto kind =
        std::find_if(kinds.begin(), kinds.end(), [&](const Kind& k) { return header.descr == k.descr; });
    if (kind == kinds.end()) throw NpzError("an array has the dtype " + python_repr(header.descr));
    std::optional<std::size_t> size = checked_bytes(header.shape, kind->bytes);
    std::string_view data = bytes.substr(begin + length);
    if (!size || *size > most_bytes || *size > data.size())
        throw NpzError("an array is smaller than its shape");
    data = data.substr(0, *size);
    NpyArray out{kind->name, header.shape, {}};
    out.bytes = header.fortran ? transposed(data, header.shape, kind->bytes)
                               : std::vector<unsigned char>(data.begin(), data.end());
    return out;
}

}  // namespace fopru
