// The first picture of a GIF file, as Pillow decodes it.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "image/decode.h"

namespace fopru {
namespace {

constexpr int most_bits = 12;
constexpr int table_size = 1 << most_bits;

// Sub-blocks as one stream.
class BlockBits {
public:
    BlockBits(Bytes file, std::size_t at) : file_(file), at_(at) {}

    int code(int bits) {
        while (have_ < bits) {
            while (left_ == 0) {
                next_block();
            }
            --left_;
            buffer_ |= static_cast<std::uint32_t>(file_.data[at_++]) << have_;
            have_ += 8;
        }
        const int code = static_cast<int>(buffer_ & ((1U << bits) - 1));
        buffer_ >>= bits;
        have_ -= bits;
        return code;
    }

private:
    // A block counts when all of it is there.
    void next_block() {
        const Bytes rest = file_.from(at_);
        if (rest.size == 0 || rest.size - 1 < rest.data[0]) {
            throw Damaged("image file is truncated (" + std::to_string(rest.size) + " bytes not processed)");
        }
        left_ = rest.data[0];
        ++at_;
    }

    Bytes file_;
    std::size_t at_;
    std::size_t left_ = 0;  // of the block
    std::uint32_t buffer_ = 0;
    int have_ = 0;
};

// Where indices go: row after row, or in the order of interlacing.
class Canvas {
public:
    Canvas(std::uint8_t* first, std::size_t stride, int width, int height, bool interlaced)
        : first_(first),
          stride_(stride),
          width_(width),
          height_(height),
          pass_(interlaced ? 0 : 3),
          step_(interlaced ? 8 : 1) {}

    bool full() const { return y_ >= height_; }

    void put(std::uint8_t index) {
        first_[static_cast<std::size_t>(y_) * stride_ + static_cast<std::size_t>(x_)] = index;
        if (++x_ < width_) {
            return;
        }
        x_ = 0;
        y_ += step_;
        while (y_ >= height_ && pass_ < 3) {
            constexpr int first_row[3] = {4, 2, 1};
            constexpr int row_step[3] = {8, 4, 2};
            y_ = first_row[pass_];
            step_ = row_step[pass_];
            ++pass_;
        }
    }

private:
    std::uint8_t* first_;
    std::size_t stride_;
    int width_;
    int height_;
    int pass_;
    int step_;
    int x_ = 0;
    int y_ = 0;
};

class Dictionary {
public:
    // Unpacks until the canvas is full. Throws Damaged where the codes make no sense or end before.
    void unpack(BlockBits& bits, int first_bits, Canvas& canvas) {
        const int clear = 1 << first_bits;
        int width = first_bits + 1;
        int next = clear + 2;
        int last = -1;  // -1 after a clear
        while (!canvas.full()) {
            const int code = bits.code(width);
            if (code == clear) {
                width = first_bits + 1;
                next = clear + 2;
                last = -1;
                continue;
            }
            if (code == clear + 1) {
                throw Damaged("image file is truncated");
            }
            if (last < 0) {
                if (code > clear) {
                    throw Damaged("broken data stream when reading image file");
                }
                lead_ = static_cast<std::uint8_t>(code);
                canvas.put(lead_);
                last = code;
                continue;
            }
            write(code, last, next, clear, canvas);
            if (next < table_size) {
                data_[next] = lead_;
                link_[next] = static_cast<std::int16_t>(last);
                if (next == (1 << width) - 1 && width < most_bits) {
                    ++width;
                }
                ++next;
            }
            last = code;
        }
    }

private:
    // The string of `code`, whose first byte becomes the lead. Strings come out of the table backwards.
    void write(int code, int last, int next, int clear, Canvas& canvas) {
        if (code > next) {
            throw Damaged("broken data stream when reading image file");
        }
        std::size_t from = string_.size();
        if (code == next) {
            string_[--from] = lead_;
            code = last;
        }
        while (code >= clear) {
            if (from == 0 || code >= table_size) {
                throw Damaged("broken data stream when reading image file");
            }
            string_[--from] = data_[code];
            code = link_[code];
        }
        lead_ = static_cast<std::uint8_t>(code);
        canvas.full() ? void() : canvas.put(lead_);
        for (std::size_t i = from; i < string_.size() && !canvas.full(); ++i) {
            canvas.put(string_[i]);
        }
    }

    std::array<std::uint8_t, table_size> data_{};
    std::array<std::int16_t, table_size> link_{};
    std::array<std::uint8_t, table_size> string_{};
    std::uint8_t lead_ = 0;
};

// RGB triples, or nothing where the picture is gray: no table, or one that counts up.
using Table = std::optional<Bytes>;

Table table_of(Bytes colours) {
    for (std::size_t i = 0; i + 2 < colours.size; i += 3) {
        for (std::size_t c = 0; c < 3; ++c) {
            if (colours.data[i + c] != i / 3) {
                return colours;
            }
        }
    }
    return std::nullopt;
}

Colour colour_of(const Table& table, std::size_t index) {
    if (!table.has_value()) {
        const auto level = static_cast<std::uint8_t>(index);
        return {level, level, level};
    }
    if (index * 3 + 3 > table->size) {
        return {};
    }
    const std::uint8_t* colour = table->data + index * 3;
    return {colour[0], colour[1], colour[2]};
}

struct Picture {
    std::uint32_t left = 0;
    std::uint32_t top = 0;
    std::uint32_t width = 0;
    std::uint32_t height = 0;
    std::uint32_t canvas_width = 0;
    std::uint32_t canvas_height = 0;
    bool interlaced = false;
    int bits = 0;
    std::optional<std::uint8_t> transparent;
    Table table;
    std::size_t data = 0;  // offset of the first sub-block
};

std::size_t after_blocks(Bytes file, std::size_t at) {
    while (at < file.size && file.data[at] != 0) {
        at += std::size_t{1} + file.data[at];
    }
    return at + 1;
}

// Everything up to the pixels of the first picture.
Picture read_headers(Bytes file) {
    Picture picture;
    picture.canvas_width = file.u16(6, false);
    picture.canvas_height = file.u16(8, false);
    const int flags = file.u8(10);
    std::size_t at = file.part(0, 13).size;
    const auto take_table = [&](int bits) {
        const Bytes colours = file.part(at, std::size_t{3} << bits);
        at += colours.size;
        return table_of(colours);
    };
    if ((flags & 128) != 0) {
        picture.table = take_table((flags & 7) + 1);
    }
    for (;;) {
        const int kind = file.u8(at++);
        if (kind == '!') {
            if (file.u8(at) == 249 && file.u8(at + 1) >= 4) {
                picture.transparent = (file.u8(at + 2) & 1) != 0
                                          ? std::optional<std::uint8_t>(file.u8(at + 5))
                                          : picture.transparent;
            }
            at = after_blocks(file, at + 1);
        } else if (kind == ',') {
            break;
        } else if (kind == ';') {
            throw Unidentified();
        }
    }
    picture.left = file.u16(at, false);
    picture.top = file.u16(at + 2, false);
    picture.width = file.u16(at + 4, false);
    picture.height = file.u16(at + 6, false);
    const int local = file.u8(at + 8);
    at += 9;
    picture.interlaced = (local & 64) != 0;
    if ((local & 128) != 0) {
        picture.table = take_table((local & 7) + 1);
    }
    picture.bits = file.u8(at);
    picture.data = at + 1;
    return picture;
}

}  // namespace

Decoded decode_gif(Bytes file) {
    Picture picture = read_headers(file);
    const std::uint32_t width = std::max(picture.canvas_width, picture.left + picture.width);
    const std::uint32_t height = std::max(picture.canvas_height, picture.top + picture.height);
    check_size(width, height);
    if (picture.width == 0 || picture.height == 0) {
        throw Damaged("a picture without pixels");
    }
    if (picture.bits > most_bits) {
        throw Damaged("codes of " + std::to_string(picture.bits) + " bits");
    }
    std::vector<std::uint8_t> indices(static_cast<std::size_t>(width) * height,
                                      picture.transparent.value_or(0));
    Canvas canvas(indices.data() + static_cast<std::size_t>(picture.top) * width + picture.left, width,
                  static_cast<int>(picture.width), static_cast<int>(picture.height), picture.interlaced);
    BlockBits bits(file, picture.data);
    Dictionary().unpack(bits, picture.bits, canvas);

    Decoded decoded;
    decoded.image = Image(static_cast<int>(height), static_cast<int>(width));
    for (std::size_t i = 0; i < indices.size(); ++i) {
        const Colour colour = colour_of(picture.table, indices[i]);
        std::memcpy(decoded.image.pixels.data() + i * 3, &colour, 3);
    }
    if (picture.transparent.has_value()) {
        whiten(decoded.image, colour_of(picture.table, *picture.transparent));
    }
    return decoded;
}

}  // namespace fopru
