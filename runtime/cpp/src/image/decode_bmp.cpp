// BMP as Pillow decodes it: 1, 4 and 8 bits with a palette, 16, 24 and 32 bits, bit fields, run lengths.
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "image/decode.h"

namespace fopru {
namespace {

constexpr std::uint32_t plain = 0;
constexpr std::uint32_t runs_of_8 = 1;
constexpr std::uint32_t runs_of_4 = 2;
constexpr std::uint32_t bit_fields = 3;

// How the bytes of a row become colours.
enum class Layout { index1, index4, index8, bits15, bits16, bytes };

struct Bitmap {
    std::uint32_t width = 0;
    std::uint32_t height = 0;
    bool from_top = false;
    std::uint32_t bits = 0;
    std::uint32_t compression = plain;
    std::size_t pixels = 0;  // offset
    Layout layout = Layout::bytes;
    std::size_t pixel_bytes = 0;               // of Layout::bytes
    std::size_t red = 2, green = 1, blue = 0;  // offsets within a pixel of Layout::bytes
    std::vector<Colour> palette;               // of the indexed layouts

    bool runs() const { return compression == runs_of_8 || compression == runs_of_4; }
    std::size_t stride() const { return ((std::size_t{width} * bits + 31) >> 3) & ~std::size_t{3}; }
    std::size_t row_bytes() const {
        switch (layout) {
            case Layout::index1:
                return (std::size_t{width} + 7) / 8;
            case Layout::index4:
                return (std::size_t{width} + 1) / 2;
            case Layout::index8:
                return width;
            case Layout::bits15:
            case Layout::bits16:
                return std::size_t{width} * 2;
            case Layout::bytes:
                break;
        }
        return std::size_t{width} * pixel_bytes;
    }
};

struct Masks {
    std::uint32_t red, green, blue, alpha;
};

[[noreturn]] void refuse_fields() { throw Damaged("Unsupported BMP bitfields layout"); }

// The layouts that Pillow knows; the second 32-bit group has its bytes in another order.
void choose_fields(Bitmap& bitmap, const Masks& masks) {
    const auto is = [&](std::uint32_t red, std::uint32_t green, std::uint32_t blue) {
        return masks.red == red && masks.green == green && masks.blue == blue;
    };
    const auto alpha_in = [&](std::initializer_list<std::uint32_t> allowed) {
        return std::find(allowed.begin(), allowed.end(), masks.alpha) != allowed.end();
    };
    const auto order = [&](std::size_t red, std::size_t green, std::size_t blue) {
        bitmap.red = red;
        bitmap.green = green;
        bitmap.blue = blue;
    };
    if (bitmap.bits == 16 && is(0xF800, 0x7E0, 0x1F)) {
        bitmap.layout = Layout::bits16;
    } else if (bitmap.bits == 16 && is(0x7C00, 0x3E0, 0x1F)) {
        bitmap.layout = Layout::bits15;
    } else if (bitmap.bits == 24 && is(0xFF0000, 0xFF00, 0xFF)) {
        order(2, 1, 0);
    } else if (bitmap.bits != 32) {
        refuse_fields();
    } else if (is(0xFF0000, 0xFF00, 0xFF) && alpha_in({0, 0xFF000000})) {
        order(2, 1, 0);
    } else if (is(0xFF000000, 0xFF0000, 0xFF00) && alpha_in({0, 0xFF})) {
        order(3, 2, 1);
    } else if (is(0xFF000000, 0xFF00, 0xFF) && alpha_in({0, 0xFF0000})) {
        order(3, 1, 0);
    } else if (is(0xFF, 0xFF00, 0xFF0000) && alpha_in({0xFF000000})) {
        order(0, 1, 2);
    } else if (is(0, 0, 0) && alpha_in({0})) {
        order(2, 1, 0);
    } else {
        refuse_fields();
    }
}

void choose_layout(Bitmap& bitmap) {
    bitmap.pixel_bytes = bitmap.bits / 8;
    switch (bitmap.bits) {
        case 1:
            bitmap.layout = Layout::index1;
            return;
        case 4:
            bitmap.layout = Layout::index4;
            return;
        case 8:
            bitmap.layout = Layout::index8;
            return;
        case 16:
            bitmap.layout = Layout::bits15;
            return;
        case 24:
        case 32:
            bitmap.layout = Layout::bytes;
            return;
        default:
            throw Damaged("Unsupported BMP pixel depth (" + std::to_string(bitmap.bits) + ")");
    }
}

// A palette that only counts up in gray is ignored, and the pixels are read as 1 or 8 bits whatever the
// header says.
void take_palette(Bitmap& bitmap, Bytes entries, std::size_t entry, std::uint32_t colours) {
    bool gray = true;
    const std::uint32_t shown = colours == 2 ? 2 : colours;
    for (std::uint32_t i = 0; i < shown && gray; ++i) {
        const std::uint32_t level = colours == 2 ? i * 255 : i;
        const Bytes rest = entries.from(i * entry);
        gray = level < 256 && rest.size >= 3 && rest.data[0] == level && rest.data[1] == level &&
               rest.data[2] == level;
    }
    if (gray) {
        const int levels = colours <= 2 ? 2 : 256;
        bitmap.layout = levels == 2 ? Layout::index1 : Layout::index8;
        for (int i = 0; i < levels; ++i) {
            const auto level = static_cast<std::uint8_t>(levels == 2 ? i * 255 : i);
            bitmap.palette.push_back({level, level, level});
        }
        return;
    }
    if (entries.size / entry > 256) {
        throw Damaged("invalid palette size");
    }
    bitmap.palette.resize(256);  // colours that are not there are black
    for (std::size_t i = 0; i < entries.size / entry; ++i) {
        const std::uint8_t* colour = entries.data + i * entry;
        bitmap.palette[i] = {colour[2], colour[1], colour[0]};
    }
}

Bitmap read_header(Bytes file) {
    Bitmap bitmap;
    bitmap.pixels = file.u32(10, false);
    const std::uint32_t size = file.u32(14, false);
    const Bytes header = file.part(14, size);
    std::size_t at = 14 + std::size_t{size};
    std::size_t entry = 4;
    std::uint32_t colours = 0;
    Masks masks{0, 0, 0, 0};
    if (size == 12) {
        bitmap.width = header.u16(4, false);
        bitmap.height = header.u16(6, false);
        bitmap.bits = header.u16(10, false);
        entry = 3;
    } else if (size == 40 || size == 52 || size == 56 || size == 64 || size == 108 || size == 124) {
        bitmap.from_top = header.u8(11) == 0xFF;
        bitmap.width = header.u32(4, false);
        bitmap.height = bitmap.from_top ? 0U - header.u32(8, false) : header.u32(8, false);
        bitmap.bits = header.u16(14, false);
        bitmap.compression = header.u32(16, false);
        colours = header.u32(32, false);
        if (bitmap.compression == bit_fields) {
            const std::size_t from = size >= 52 ? 54 : at;
            masks = {file.u32(from, false), file.u32(from + 4, false), file.u32(from + 8, false), 0};
            masks.alpha = size >= 56 ? file.u32(from + 12, false) : 0;
            at += size >= 52 ? 0 : 12;
        }
    } else {
        throw Damaged("Unsupported BMP header type (" + std::to_string(size) + ")");
    }
    check_size(bitmap.width, bitmap.height);
    choose_layout(bitmap);
    if (colours == 0) {
        colours = bitmap.bits < 16 ? 1U << bitmap.bits : 0;
    }
    if (bitmap.pixels == 14 + std::size_t{size} && bitmap.bits <= 8) {
        bitmap.pixels += entry * colours;
    }
    if (bitmap.compression == bit_fields) {
        choose_fields(bitmap, masks);
    } else if (bitmap.compression != plain && !bitmap.runs()) {
        throw Damaged("Unsupported BMP compression (" + std::to_string(bitmap.compression) + ")");
    }
    if (bitmap.bits <= 8) {
        if (colours == 0 || colours > 65536) {
            throw Damaged("Unsupported BMP Palette size (" + std::to_string(colours) + ")");
        }
        const Bytes rest = file.from(at);
        const std::size_t length = std::min<std::size_t>(rest.size, entry * colours);
        take_palette(bitmap, {rest.data, length}, entry, colours);
        at += length;
    }
    bitmap.pixels = bitmap.pixels != 0 ? bitmap.pixels : at;
    return bitmap;
}

// Run lengths unpacked: an index per byte, rows without a gap.
std::vector<std::uint8_t> unpack_runs(Bytes file, const Bitmap& bitmap) {
    const std::size_t width = bitmap.width;
    const std::size_t whole = width * bitmap.height;
    const bool halves = bitmap.compression == runs_of_4;
    std::vector<std::uint8_t> indices;
    indices.reserve(std::min<std::size_t>(whole, file.size * 128));
    std::size_t at = bitmap.pixels;
    std::size_t x = 0;
    const auto zeros = [&](std::size_t count) {
        indices.resize(indices.size() + std::min(count, whole - std::min(whole, indices.size())));
    };
    while (indices.size() < whole && at + 1 < file.size) {
        const std::size_t length = file.data[at];
        const std::uint8_t value = file.data[at + 1];
        at += 2;
        if (length != 0) {
            const std::size_t fits = x + length > width ? (width > x ? width - x : 0) : length;
            for (std::size_t i = 0; i < fits; ++i) {
                indices.push_back(!halves ? value : i % 2 == 0 ? value >> 4 : value & 15);
            }
            x += fits;
        } else if (value == 0) {
            zeros((width - indices.size() % width) % width);
            x = 0;
        } else if (value == 1) {
            break;
        } else if (value == 2) {
            if (file.from(at).size < 2) {
                break;
            }
            zeros(file.data[at] + file.data[at + 1] * width);
            at += 2;
            x = indices.size() % width;
        } else {
            const std::size_t count = std::min<std::size_t>(whole - indices.size(), value);
            const Bytes rest = file.from(at);
            const std::size_t wanted = halves ? (count + 1) / 2 : count;
            const std::size_t bytes = std::min(rest.size, wanted);
            for (std::size_t i = 0; i < bytes; ++i) {
                if (!halves) {
                    indices.push_back(rest.data[i]);
                    continue;
                }
                indices.push_back(rest.data[i] >> 4);
                if (i * 2 + 1 < count) {
                    indices.push_back(rest.data[i] & 15);
                }
            }
            if (bytes < wanted) {
                break;
            }
            at += bytes;
            x += count;
            at += at % 2;  // the next code begins at an even place of the file
        }
    }
    if (indices.size() < whole) {
        throw Damaged("not enough image data");
    }
    return indices;
}

Colour colour_at(const Bitmap& bitmap, const std::uint8_t* row, std::size_t x) {
    const auto scaled = [](std::uint32_t value, std::uint32_t most) {
        return static_cast<std::uint8_t>((value & most) * 255 / most);
    };
    const auto pair = [&] { return static_cast<std::uint32_t>(row[x * 2] | row[x * 2 + 1] << 8); };
    switch (bitmap.layout) {
        case Layout::index1:
            return bitmap.palette[row[x / 8] >> (7 - x % 8) & 1];
        case Layout::index4:
            return bitmap.palette[row[x / 2] >> (x % 2 == 0 ? 4 : 0) & 15];
        case Layout::index8:
            return bitmap.palette[row[x]];
        case Layout::bits15:
            return {scaled(pair() >> 10, 31), scaled(pair() >> 5, 31), scaled(pair(), 31)};
        case Layout::bits16:
            return {scaled(pair() >> 11, 31), scaled(pair() >> 5, 63), scaled(pair(), 31)};
        case Layout::bytes:
            break;
    }
    const std::uint8_t* pixel = row + x * bitmap.pixel_bytes;
    return {pixel[bitmap.red], pixel[bitmap.green], pixel[bitmap.blue]};
}

}  // namespace

Decoded decode_bmp(Bytes file) {
    Bitmap bitmap = read_header(file);
    std::vector<std::uint8_t> unpacked;
    Bytes pixels = file.from(bitmap.pixels);
    std::size_t stride = bitmap.stride();
    if (bitmap.runs()) {
        if (bitmap.bits > 8 || bitmap.layout == Layout::index1) {
            throw Damaged("run lengths of " + std::to_string(bitmap.bits) + "-bit pixels");
        }
        bitmap.layout = Layout::index8;
        unpacked = unpack_runs(file, bitmap);
        pixels = {unpacked.data(), unpacked.size()};
        stride = bitmap.width;
    }
    const std::size_t row_bytes = bitmap.row_bytes();
    if (stride < row_bytes) {
        throw Damaged("rows are shorter than their pixels");
    }
    if (pixels.size < row_bytes || (pixels.size - row_bytes) / stride < bitmap.height - 1) {
        throw Damaged("image file is truncated");
    }
    Decoded decoded;
    decoded.image = Image(static_cast<int>(bitmap.height), static_cast<int>(bitmap.width));
    for (std::uint32_t y = 0; y < bitmap.height; ++y) {
        const std::uint8_t* row = pixels.data + y * stride;
        std::uint8_t* to = decoded.image.row(static_cast<int>(bitmap.from_top ? y : bitmap.height - 1 - y));
        for (std::size_t x = 0; x < bitmap.width; ++x, to += 3) {
            const Colour colour = colour_at(bitmap, row, x);
            std::memcpy(to, &colour, 3);
        }
    }
    return decoded;
}

}  // namespace fopru
