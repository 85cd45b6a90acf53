#include "base/npz.h"

#include <zlib.h>

#include <utility>

#include "base/python_text.h"
#include "base/utf8_check.h"

namespace fopru {

namespace {

constexpr std::size_t end_bytes = 22, entry_bytes = 46, local_bytes = 30;  // without names and comments

// Little-endian numbers at checked places of a zip file.
class Bytes {
public:
    explicit Bytes(std::string_view bytes) : bytes_(bytes) {}
    std::size_t size() const { return bytes_.size(); }

    std::string_view part(std::size_t at, std::size_t length) const {
        if (at > bytes_.size() || length > bytes_.size() - at) throw NpzError("the file is cut off");
        return bytes_.substr(at, length);
    }

    std::size_t number(std::size_t at, std::size_t length) const {
        std::size_t out = 0;
        std::string_view text = part(at, length);
        for (std::size_t place = length; place-- > 0;)
            out = out << 8 | static_cast<unsigned char>(text[place]);
        return out;
    }

private:
    std::string_view bytes_;
};

struct Entry {
    std::string name;
    std::size_t method, crc, packed, size, local;
};

std::size_t find_end(const Bytes& file) {
    if (file.size() < end_bytes) throw NpzError("File is not a zip file");
    std::size_t last = file.size() - end_bytes, first = last > 65535 ? last - 65535 : 0;
    for (std::size_t at = last + 1; at-- > first;) {
        if (file.part(at, 4) == std::string_view("PK\5\6", 4)) return at;
    }
    throw NpzError("File is not a zip file");
}

std::vector<Entry> read_directory(const Bytes& file) {
    std::size_t end = find_end(file), count = file.number(end + 10, 2), at = file.number(end + 16, 4);
    std::vector<Entry> out;
    for (std::size_t place = 0; place < count; ++place) {
        if (file.part(at, 4) != std::string_view("PK\1\2", 4))
            throw NpzError("Bad magic number for central directory");
        std::size_t name = file.number(at + 28, 2);
        if ((file.number(at + 8, 2) & 1) != 0) throw NpzError("an array is encrypted");
        out.push_back({std::string(file.part(at + entry_bytes, name)), file.number(at + 10, 2),
                       file.number(at + 16, 4), file.number(at + 20, 4), file.number(at + 24, 4),
                       file.number(at + 42, 4)});
        at += entry_bytes + name + file.number(at + 30, 2) + file.number(at + 32, 2);
    }
    return out;
}

// Ends what `inflateInit2` began.
class Inflater {
public:
    Inflater() {
        if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK)
            throw NpzError("zlib cannot start");  // raw: no zlib header
    }
    ~Inflater() { inflateEnd(&stream_); }
    Inflater(const Inflater&) = delete;
    Inflater& operator=(const Inflater&) = delete;

    // Exactly `size` bytes.
    std::string run(std::string_view packed, std::size_t size) {
        std::string out(size, '\0');
        stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
        stream_.avail_in = static_cast<uInt>(packed.size());
        stream_.next_out = reinterpret_cast<Bytef*>(out.data());
        stream_.avail_out = static_cast<uInt>(size);
        if (inflate(&stream_, Z_FINISH) != Z_STREAM_END || stream_.avail_out != 0) {
            throw NpzError("a compressed array is damaged");
        }
        return out;
    }

private:
    z_stream stream_{};
};

std::string unpacked(const Bytes& file, const Entry& entry) {
    if (file.part(entry.local, 4) != std::string_view("PK\3\4", 4))
        throw NpzError("Bad magic number for file header");
    // The local name and extra field have lengths of their own; sizes are those of the directory.
    std::size_t begin =
        entry.local + local_bytes + file.number(entry.local + 26, 2) + file.number(entry.local + 28, 2);
    std::string_view packed = file.part(begin, entry.packed);
    if (entry.method != 0 && entry.method != 8) throw NpzError("an array has an unknown compression");
    if (entry.method == 0 && entry.packed != entry.size) throw NpzError("an array has two sizes");
    // Deflate makes at most 1032 bytes of one: a larger claim would only take memory.
    if (entry.size / 1032 > entry.packed) throw NpzError("a compressed array claims too many bytes");
    std::string out = entry.method == 0 ? std::string(packed) : Inflater().run(packed, entry.size);
    auto data = reinterpret_cast<const Bytef*>(out.data());
    if (crc32(0, data, static_cast<uInt>(out.size())) != entry.crc) {
        throw NpzError("Bad CRC-32 for file " + python_repr(entry.name));
    }
    return out;
}

}  // namespace

NpzArrays parse_npz(std::string_view bytes, std::size_t most_bytes) {
    Bytes file(bytes);
    NpzArrays out;
    std::size_t packed =
        0;  // of all entries so far: they may not share bytes, which would make a small file large
    for (const Entry& entry : read_directory(file)) {
        std::size_t dot = entry.name.size() < 4 ? std::string::npos : entry.name.size() - 4;
        bool utf8 = first_bad_utf8(entry.name) == std::string::npos;
        if (dot == std::string::npos || entry.name.substr(dot) != ".npy" || !utf8) {
            throw NpzError("it holds " + python_repr(entry.name) + ", which is no array");
        }
        packed += entry.packed;
        if (packed > bytes.size()) throw NpzError("its arrays overlap");
        if (entry.size > most_bytes) throw NpzError("its arrays are larger than is read");
        most_bytes -= entry.size;
        NpyArray array = parse_npy(unpacked(file, entry), entry.size);
        if (!out.emplace(entry.name.substr(0, dot), std::move(array)).second) {
            throw NpzError("it holds " + python_repr(entry.name) + " twice");
        }
    }
    return out;
}

}  // namespace fopru
