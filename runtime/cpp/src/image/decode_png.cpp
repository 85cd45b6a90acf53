// PNG to RGB with the rules of Pillow, which are not those of the standard where alpha and depth are
// concerned.
#include <cstdlib>
#include <cstring>

#include "image/inflate.h"
#include "image/png_chunks.h"

namespace fopru {
namespace {

// One picture that rows are put into: the whole of it, or one of the seven that interlacing makes.
struct Pass {
    int first_row;
    int first_column;
    int row_step;
    int column_step;
};

constexpr Pass whole = {0, 0, 1, 1};
constexpr Pass adam7[7] = {{0, 0, 8, 8}, {0, 4, 8, 8}, {4, 0, 8, 4}, {0, 2, 4, 4},
                           {2, 0, 4, 2}, {0, 1, 2, 2}, {1, 0, 2, 1}};

int count(int side, int first, int step) { return side > first ? (side - first + step - 1) / step : 0; }

std::uint8_t predicted(int left, int above, int corner) {
    const int from_left = std::abs(above - corner);
    const int from_above = std::abs(left - corner);
    const int from_corner = std::abs(left + above - 2 * corner);
    if (from_left <= from_above && from_left <= from_corner) {
        return static_cast<std::uint8_t>(left);
    }
    return static_cast<std::uint8_t>(from_above <= from_corner ? above : corner);
}

// Undoes the filter of a row in place. `row` and `above` have `length` bytes; `step` is bytes of a pixel, at
// least 1.
void undo_filter(int filter, std::uint8_t* row, const std::uint8_t* above, std::size_t length,
                 std::size_t step) {
    const auto left = [&](std::size_t i) { return i < step ? 0 : row[i - step]; };
    const auto add = [&](std::size_t i, int value) { row[i] = static_cast<std::uint8_t>(row[i] + value); };
    switch (filter) {
        case 0:
            return;
        case 1:
            for (std::size_t i = step; i < length; ++i) {
                add(i, row[i - step]);
            }
            return;
        case 2:
            for (std::size_t i = 0; i < length; ++i) {
                add(i, above[i]);
            }
            return;
        case 3:
            for (std::size_t i = 0; i < length; ++i) {
                add(i, (left(i) + above[i]) / 2);
            }
            return;
        case 4:
            for (std::size_t i = 0; i < length; ++i) {
                add(i, predicted(left(i), above[i], i < step ? 0 : above[i - step]));
            }
            return;
        default:
            throw Damaged("unknown filter in a row of a PNG file");
    }
}

// How the samples of a row become RGB.
class Unpacker {
public:
    explicit Unpacker(const PngFile& png) : header_(png.header) {
        if (header_.colour != PngColour::palette) {
            return;
        }
        if (!png.palette.has_value()) {
            throw Damaged("a palette image without a palette");
        }
        if (png.palette->size > sizeof(palette_)) {
            throw Damaged("invalid palette size");
        }
        std::memcpy(palette_, png.palette->data,
                    png.palette->size / 3 * 3);  // colours that are not there are black
    }

    Colour colour(std::size_t index) const { return palette_[index]; }

    // The pixel at `column` of a row.
    Colour pixel(const std::uint8_t* row, std::size_t column) const {
        const auto gray = [](int value) {
            const auto level = static_cast<std::uint8_t>(value);
            return Colour{level, level, level};
        };
        const std::size_t bytes = header_.depth == 16 ? 2 : 1;  // of a sample: the upper one counts
        const std::size_t at = column * static_cast<std::size_t>(header_.samples()) * bytes;
        switch (header_.colour) {
            case PngColour::rgb:
            case PngColour::rgba:
                return {row[at], row[at + bytes], row[at + 2 * bytes]};
            case PngColour::gray_alpha:
                return gray(row[at]);
            case PngColour::palette:
                return palette_[sample(row, column)];
            case PngColour::gray:
                break;
        }
        if (header_.depth == 16) {
            return gray(row[at] == 0 ? row[at + 1] : 255);  // Pillow clips where it might scale
        }
        return gray(sample(row, column) * 255 / ((1 << header_.depth) - 1));
    }

private:
    int sample(const std::uint8_t* row, std::size_t column) const {
        const std::size_t bit = column * static_cast<std::size_t>(header_.depth);
        const int shift = 8 - header_.depth - static_cast<int>(bit % 8);
        return row[bit / 8] >> shift & ((1 << header_.depth) - 1);
    }

    PngHeader header_;
    Colour palette_[256] = {};
};

// Rows out of the packed data, which may be spread over any number of chunks.
class Rows {
public:
    explicit Rows(const std::vector<Bytes>& data) : data_(data) {}

    // The next row with the filter's number before it. False where the stream ended with the row before:
    // Pillow leaves the rest black. Throws Damaged where bytes are wrong or missing.
    bool next(std::uint8_t* row, std::size_t length) {
        if (ended_) {
            return false;
        }
        std::size_t have = 0;
        while (have < length) {
            while (stream_.hungry()) {
                if (chunk_ == data_.size()) {
                    throw Damaged("image file is truncated");
                }
                stream_.feed(data_[chunk_++]);
            }
            if (ended_) {
                throw Damaged("image file is truncated");
            }
            std::size_t written = 0;
            if (!stream_.unpack(row + have, length - have, written, ended_)) {
                throw Damaged("broken data stream when reading image file");
            }
            have += written;
        }
        return true;
    }

private:
    const std::vector<Bytes>& data_;
    std::size_t chunk_ = 0;
    Inflate stream_;
    bool ended_ = false;
};

std::size_t row_bytes(int columns, const PngHeader& header) {
    return (static_cast<std::size_t>(columns) * static_cast<std::size_t>(header.pixel_bits()) + 7) / 8;
}

// Every picture has at least its first row. Rows may take more memory than the picture, so whether that one
// can be there is asked before: deflate makes at most 1032 bytes of one.
void check_first_row(const PngFile& png) {
    std::uint64_t packed = 0;
    for (const Bytes& data : png.data) {
        packed += data.size;
    }
    const auto width = static_cast<int>(png.header.width);
    const Pass& pass = png.header.interlaced ? adam7[0] : whole;
    if (row_bytes(count(width, pass.first_column, pass.column_step), png.header) / 1032 > packed) {
        throw Damaged("image file is truncated");
    }
}

// False where the stream ended early.
bool read_pass(const Pass& pass, const PngHeader& header, Rows& rows, const Unpacker& unpacker,
               Image& image) {
    const int columns = count(image.width, pass.first_column, pass.column_step);
    const int lines = count(image.height, pass.first_row, pass.row_step);
    const auto bits = static_cast<std::size_t>(header.pixel_bits());
    const std::size_t length = row_bytes(columns, header);
    if (columns == 0 || lines == 0) {
        return true;
    }
    std::vector<std::uint8_t> row(length + 1);
    std::vector<std::uint8_t> above(length + 1);
    for (int line = 0; line < lines; ++line) {
        if (!rows.next(row.data(), row.size())) {
            return false;
        }
        undo_filter(row[0], row.data() + 1, above.data() + 1, length, (bits + 7) / 8);
        std::uint8_t* to = image.row(pass.first_row + line * pass.row_step);
        for (int column = 0; column < columns; ++column) {
            const Colour colour = unpacker.pixel(row.data() + 1, static_cast<std::size_t>(column));
            std::memcpy(to + static_cast<std::size_t>(pass.first_column + column * pass.column_step) * 3,
                        &colour, 3);
        }
        row.swap(above);
    }
    return true;
}

// A palette's tRNS that makes one colour fully transparent and leaves the others opaque names that colour;
// any other only has alphas, which are dropped.
void whiten_palette(Image& image, Bytes alphas, const Unpacker& unpacker) {
    if (alphas.size > 256) {
        throw Damaged("more transparencies than a palette has colours");
    }
    // Pillow's pattern ends in `$`, which lets a line feed follow.
    std::size_t size = alphas.size;
    std::size_t clear = size;
    for (std::size_t i = 0; i < size; ++i) {
        if (alphas.data[i] == 0 && clear == size) {
            clear = i;
        } else if (alphas.data[i] != 255 && !(alphas.data[i] == '\n' && i == size - 1)) {
            return;
        }
    }
    if (clear < size) {
        whiten(image, unpacker.colour(clear));
    }
}

// Pillow keeps the declared sample as it is written and compares it with what the pixels have become, in 8
// bits.
void whiten_declared(Image& image, const PngFile& png, const Unpacker& unpacker) {
    if (!png.transparency.has_value()) {
        return;
    }
    const Bytes declared = *png.transparency;
    const bool colours = png.header.colour == PngColour::rgb;
    if (png.header.colour == PngColour::palette) {
        whiten_palette(image, declared, unpacker);
    } else if (colours || png.header.colour == PngColour::gray) {
        if (declared.size < (colours ? 6U : 2U)) {
            throw Damaged("Truncated tRNS chunk");
        }
        const auto low = [&](std::size_t offset) {
            return static_cast<std::uint8_t>(declared.u16(offset, true));
        };
        const std::uint32_t level = declared.u16(0, true);
        const auto clipped = static_cast<std::uint8_t>(level < 255 ? level : 255);
        if (colours) {
            whiten(image, {low(0), low(2), low(4)});
        } else if (png.header.depth == 1) {
            whiten(image, level != 0 ? Colour{255, 0, 0} : Colour{});
        } else if (png.header.depth == 16) {
            whiten(image, {low(0), 0, 0});
        } else {
            whiten(image, {clipped, clipped, clipped});
        }
    }
}

}  // namespace

Decoded decode_png(Bytes file) {
    PngFile png = read_png_chunks(file);
    const Unpacker unpacker(png);
    check_first_row(png);
    Image image(static_cast<int>(png.header.height), static_cast<int>(png.header.width));
    Rows rows(png.data);
    if (png.header.interlaced) {
        for (const Pass& pass : adam7) {
            if (!read_pass(pass, png.header, rows, unpacker, image)) {
                break;
            }
        }
    } else {
        read_pass(whole, png.header, rows, unpacker, image);
    }
    whiten_declared(image, png, unpacker);
    return {std::move(image), std::move(png.metadata)};
}

}  // namespace fopru
