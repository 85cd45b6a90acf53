#include "image/exif.h"

#include <cstring>
#include <optional>
#include <string_view>

namespace fopru {
namespace {

constexpr std::uint32_t orientation_tag = 0x0112;

// Bytes of one value of a TIFF type, 0 for a type that is not known.
std::size_t unit_size(std::uint32_t type) {
    switch (type) {
        case 1:
        case 2:
        case 6:
        case 7:
            return 1;
        case 3:
        case 8:
            return 2;
        case 4:
        case 9:
        case 11:
        case 13:
            return 4;
        case 5:
        case 10:
        case 12:
        case 16:
            return 8;
        default:
            return 0;
    }
}

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

// One number of a TIFF field, 0 (no orientation) for bytes and text.
double number_at(Bytes value, std::uint32_t type, bool big) {
    const auto u64 = [&] {
        const std::uint64_t first = value.u32(0, big);
        const std::uint64_t second = value.u32(4, big);
        return big ? first << 32 | second : second << 32 | first;
    };
    switch (type) {
        case 3:
            return value.u16(0, big);
        case 4:
        case 13:
            return value.u32(0, big);
        case 6:
            return static_cast<std::int8_t>(value.u8(0));
        case 8:
            return static_cast<std::int16_t>(value.u16(0, big));
        case 9:
            return static_cast<std::int32_t>(value.u32(0, big));
        case 11:
            return bits_as<float>(value.u32(0, big));
        case 12:
            return bits_as<double>(u64());
        case 16:
            return static_cast<double>(u64());
        case 5: {
            const std::uint32_t below = value.u32(4, big);
            return below == 0 ? 0.0 : static_cast<double>(value.u32(0, big)) / below;
        }
        case 10: {
            const auto below = static_cast<std::int32_t>(value.u32(4, big));
            return below == 0 ? 0.0
                              : static_cast<double>(static_cast<std::int32_t>(value.u32(0, big))) / below;
        }
        default:
            return 0.0;
    }
}

// The value of the tag in the first directory, nothing where it is not there. A directory that breaks off is
// read as far as it goes, as Pillow reads it.
std::optional<double> field_of(Bytes tiff, bool big) {
    const std::size_t start = tiff.u32(4, big);
    if (start > tiff.size || tiff.size - start < 2) {
        return std::nullopt;
    }
    const std::size_t count = tiff.u16(start, big);
    std::uint64_t outside = 0;  // bytes of all values so far that do not fit into their entry
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t at = start + 2 + i * 12;
        if (tiff.size < 12 || at > tiff.size - 12) {
            return std::nullopt;
        }
        const std::uint32_t type = tiff.u16(at + 2, big);
        const std::uint64_t values = tiff.u32(at + 4, big);
        const std::uint64_t size = values * unit_size(type);
        Bytes value = tiff.part(at + 8, 4);
        if (size > 4) {
            outside += size;
            if (outside > tiff.size) {
                continue;
            }
            const std::size_t offset = tiff.u32(at + 8, big);
            if (offset > tiff.size || size > tiff.size - offset) {
                return std::nullopt;
            }
            value = tiff.part(offset, static_cast<std::size_t>(size));
        }
        if (tiff.u16(at, big) == orientation_tag && size > 0) {
            return values == 1 ? number_at(value, type, big) : 0.0;
        }
    }
    return std::nullopt;
}

Bytes bytes_of(std::string_view text) {
    return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::optional<double> exif_orientation(const std::string& record) {
    constexpr std::string_view prefix("Exif\0\0", 6);
    std::string_view text = record;
    for (int i = 0; i < 2 && text.substr(0, prefix.size()) == prefix; ++i) {
        text.remove_prefix(prefix.size());
    }
    if (text.empty()) {
        return std::nullopt;
    }
    const Bytes tiff = bytes_of(text);
    const std::string_view head = text.substr(0, 4);
    const bool big = head == std::string_view("MM\0\x2A", 4) || head == std::string_view("MM\x2A\0", 4);
    const bool little = head == std::string_view("II\0\x2A", 4) || head == std::string_view("II\x2A\0", 4);
    if ((!big && !little) || tiff.size < 8) {
        throw Damaged("its Exif record is not a TIFF file");
    }
    return field_of(tiff, big);
}

double xmp_orientation(const std::string& packet) {
    constexpr std::string_view name = "tiff:Orientation";
    const std::string_view text = packet;
    for (std::size_t at = text.find(name); at != std::string_view::npos; at = text.find(name, at + 1)) {
        std::string_view rest = text.substr(at + name.size());
        const std::size_t skip = rest.substr(0, 2) == "=\"" ? 2 : rest.substr(0, 1) == ">" ? 1 : 0;
        rest.remove_prefix(skip);
        if (skip > 0 && !rest.empty() && rest[0] >= '0' && rest[0] <= '9') {
            return rest[0] - '0';
        }
    }
    return 1.0;
}

struct Pixel {
    std::uint8_t bytes[3];
};

}  // namespace

int orientation_of(const Metadata& metadata) {
    const std::optional<double> said = exif_orientation(metadata.exif);
    const double value = said.has_value() ? *said : xmp_orientation(metadata.xmp);
    for (int orientation = 2; orientation <= 8; ++orientation) {
        if (value == orientation) {
            return orientation;
        }
    }
    return 1;
}

Image upright(Image image, int orientation) {
    if (orientation < 2 || orientation > 8) {
        return image;
    }
    const bool turned = orientation >= 5;  // rows become columns
    Image out(turned ? image.width : image.height, turned ? image.height : image.width);
    // The source of the output's (y, x) is the input's (y, x), exchanged where turned, then mirrored.
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int y = 0; y < out.height; ++y) {
        std::uint8_t* to = out.row(y);
        for (int x = 0; x < out.width; ++x, to += 3) {
            const int column = turned ? y : x;
            const int line = turned ? x : y;
            const int source_x = from_right ? image.width - 1 - column : column;
            const int source_y = from_below ? image.height - 1 - line : line;
            std::memcpy(to, image.row(source_y) + static_cast<std::size_t>(source_x) * 3, sizeof(Pixel));
        }
    }
    return out;
}

}  // namespace fopru
