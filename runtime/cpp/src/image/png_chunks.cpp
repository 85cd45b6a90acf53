#include "image/png_chunks.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "image/inflate.h"

namespace fopru {
namespace {

constexpr std::size_t signature_bytes = 8;
constexpr std::size_t most_text = std::size_t{1} << 20;  // of one compressed text, unpacked, as in Pillow
constexpr std::size_t most_texts = 64 * most_text;

struct Chunk {
    std::string_view type;
    Bytes body;
};

bool is_word(std::string_view type) {
    return std::all_of(type.begin(), type.end(), [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
    });
}

std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data), bytes.size}; }

// The bytes up to the first zero, which is taken off too; all of them where there is none.
std::string_view take_word(std::string_view& rest) {
    const std::size_t end = rest.find('\0');
    const std::string_view word = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return word;
}

class Reader {
public:
    explicit Reader(Bytes file) : file_(file) {}

    PngFile read() {
        read_until_data();
        read_data();
        read_rest();
        settle_metadata();
        return std::move(png_);
    }

private:
    Chunk next() {
        const Bytes type = file_.part(at_ + 4, 4);
        if (!is_word(text_of(type))) {
            throw Damaged("broken PNG file (a chunk without a name)");
        }
        return {text_of(type), file_.part(at_ + 8, file_.u32(at_, true))};
    }

    void skip(const Chunk& chunk) { at_ += 12 + chunk.body.size; }

    void check_sum(const Chunk& chunk) const {
        const Bytes summed = file_.part(at_ + 4, 4 + chunk.body.size);
        const uLong sum = crc32_z(crc32_z(0, nullptr, 0), summed.data, summed.size);
        if (sum != file_.u32(at_ + 8 + chunk.body.size, true)) {
            throw Damaged("broken PNG file (bad header checksum in " + std::string(chunk.type) + ")");
        }
    }

    void read_until_data() {
        for (;;) {
            const Chunk chunk = next();
            if (chunk.type == "IDAT") {
                break;
            }
            if (chunk.type == "IEND" || chunk.type == "fdAT") {
                throw Damaged("there is no image data before " + std::string(chunk.type));
            }
            keep(chunk);
            check_sum(chunk);
            skip(chunk);
        }
        if (png_.header.depth == 0) {
            throw Unidentified();
        }
        check_size(png_.header.width, png_.header.height);
    }

    // A last chunk of data may be cut short: the pixels say whether enough is there.
    void read_data() {
        while (at_ <= file_.size && file_.size - at_ >= 8) {
            const std::string_view type = text_of(file_.part(at_ + 4, 4));
            if (type != "IDAT") {
                return;
            }
            const Bytes rest = file_.from(at_ + 8);
            const std::size_t length = std::min<std::size_t>(file_.u32(at_, true), rest.size);
            png_.data.push_back({rest.data, length});
            at_ += 12 + length;
        }
    }

    void read_rest() {
        while (at_ <= file_.size && file_.size - at_ >= 8) {
            const std::string_view type = text_of(file_.part(at_ + 4, 4));
            if (!is_word(type) || type == "IEND") {
                return;
            }
            const Chunk chunk = next();
            after_data_ = true;
            keep(chunk);
            skip(chunk);
        }
    }

    void keep(const Chunk& chunk) {
        if (chunk.type == "IHDR") {
            header(chunk.body);
        } else if (chunk.type == "PLTE" && png_.header.colour == PngColour::palette && !after_data_) {
            png_.palette = chunk.body;
        } else if (chunk.type == "tRNS") {
            png_.transparency = chunk.body;
        } else if (chunk.type == "eXIf") {
            png_.metadata.exif.assign(text_of(chunk.body));
        } else if (chunk.type == "fcTL") {
            frame(chunk.body);
        } else if (chunk.type == "iCCP") {
            profile(text_of(chunk.body));
        } else if (chunk.type == "tEXt" || chunk.type == "zTXt" || chunk.type == "iTXt") {
            text(chunk);
        }
    }

    void header(Bytes body) {
        if (body.size < 13) {
            throw Damaged("Truncated IHDR chunk");
        }
        PngHeader& header = png_.header;
        if (after_data_ || header.depth != 0) {
            throw Damaged("a second IHDR chunk");
        }
        header.width = body.u32(0, true);
        header.height = body.u32(4, true);
        const int depth = body.u8(8);
        const int colour = body.u8(9);
        const bool small = depth == 1 || depth == 2 || depth == 4;
        const bool whole = depth == 8 || depth == 16;
        const bool known = (colour == 0 && (small || whole)) || (colour == 3 && (small || depth == 8)) ||
                           ((colour == 2 || colour == 4 || colour == 6) && whole);
        if (!known || body.u8(11) != 0) {
            throw Unidentified();
        }
        header.depth = depth;
        header.colour = static_cast<PngColour>(colour);
        header.interlaced = body.u8(12) != 0;
    }

    // The picture itself may be the first of an animation; then it has to fill the canvas.
    void frame(Bytes body) const {
        if (after_data_) {
            return;
        }
        const bool whole = body.u32(4, true) == png_.header.width &&
                           body.u32(8, true) == png_.header.height && body.u32(12, true) == 0 &&
                           body.u32(16, true) == 0;
        if (!whole) {
            throw Damaged(
                "the first frame of an animation does not fill its canvas, which this runtime cannot read");
        }
    }

    static void profile(std::string_view rest) {
        take_word(rest);
        if (rest.empty() || rest[0] != 0) {
            throw Damaged("Unknown compression method in iCCP chunk");
        }
        unpacked(rest.substr(1));
    }

    static std::string unpacked(std::string_view packed) {
        return inflate_text({reinterpret_cast<const std::uint8_t*>(packed.data()), packed.size()}, most_text);
    }

    void text(const Chunk& chunk) {
        std::string_view rest = text_of(chunk.body);
        const std::string_view key = take_word(rest);
        std::string value;
        if (chunk.type == "tEXt") {
            value = rest;
        } else if (chunk.type == "zTXt") {
            if (!rest.empty() && rest[0] != 0) {
                throw Damaged("Unknown compression method in zTXt chunk");
            }
            value = rest.empty() ? std::string() : unpacked(rest.substr(1));
        } else {
            if (rest.size() < 2) {
                return;
            }
            const bool packed = rest[0] != 0;
            const bool unknown = packed && rest[1] != 0;
            rest.remove_prefix(2);
            take_word(rest);  // language
            take_word(rest);  // the key in that language
            if (unknown) {
                return;
            }
            value = packed ? unpacked(rest) : std::string(rest);
        }
        texts_ += value.size();
        if (texts_ > most_texts) {
            throw Damaged("Too much memory used in text chunks");
        }
        if (key == "XML:com.adobe.xmp") {
            png_.metadata.xmp = std::move(value);
        } else if (key == "Raw profile type exif") {
            raw_profile_ = std::move(value);
        } else if (key == "exif" && chunk.type == "tEXt") {
            png_.metadata.exif = std::move(value);
        }
    }

    // Exif as hexadecimal digits, behind three lines of heading: what ImageMagick writes. Used where there is
    // no eXIf.
    void settle_metadata() {
        if (!png_.metadata.exif.empty() || raw_profile_.empty()) {
            return;
        }
        std::string_view rest = raw_profile_;
        for (int line = 0; line < 3; ++line) {
            const std::size_t end = rest.find('\n');
            rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
        }
        int high = -1;
        for (const char c : rest) {
            const int digit = digit_of(c);
            if (digit < 0) {
                continue;
            }
            if (high >= 0) {
                png_.metadata.exif.push_back(static_cast<char>(high * 16 + digit));
            }
            high = high >= 0 ? -1 : digit;
        }
        if (high >= 0) {
            throw Damaged("its Exif record has half a byte");
        }
    }

    // -1 for the white space between digits.
    static int digit_of(char c) {
        const std::string_view digits = "0123456789abcdef";
        const std::size_t at = digits.find(c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c);
        if (at != std::string_view::npos) {
            return static_cast<int>(at);
        }
        if (c == '\n' || c == ' ' || c == '\r' || c == '\t') {
            return -1;
        }
        throw Damaged("its Exif record is not written in hexadecimal digits");
    }

    Bytes file_;
    std::size_t at_ = signature_bytes;
    bool after_data_ = false;
    std::size_t texts_ = 0;
    std::string raw_profile_;
    PngFile png_;
};

}  // namespace

int PngHeader::samples() const {
    switch (colour) {
        case PngColour::gray:
        case PngColour::palette:
            return 1;
        case PngColour::gray_alpha:
            return 2;
        case PngColour::rgb:
            return 3;
        case PngColour::rgba:
            return 4;
    }
    return 0;
}

PngFile read_png_chunks(Bytes file) { return Reader(file).read(); }

}  // namespace fopru
