// Private to src/image: what the decoders of single formats share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "image/image.h"

namespace fopru {

// A view of bytes that somebody else owns. Every read is checked: beyond the end is `Damaged`.
struct Bytes {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    bool starts_with(const char* text, std::size_t length) const;
    Bytes part(std::size_t offset, std::size_t length) const;
    Bytes from(std::size_t offset) const;  // empty beyond the end
    std::uint8_t u8(std::size_t offset) const;
    std::uint32_t u16(std::size_t offset, bool big) const;
    std::uint32_t u32(std::size_t offset, bool big) const;
};

// The file is of this format and broken; the text goes into the parentheses of the message.
struct Damaged : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// No format that is known, or a variant that Pillow does not take for an image either.
struct Unidentified : std::runtime_error {
    Unidentified() : std::runtime_error("not an image") {}
};

// More than `max_pixels`; the text is that of Pillow's warning.
struct TooLarge : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Sides of an image that is about to be allocated. Throws Unidentified for an empty one, TooLarge.
void check_size(std::uint64_t width, std::uint64_t height);

// What a file says about its rotation: its Exif record and its XMP packet, both empty where there is none.
struct Metadata {
    std::string exif;
    std::string xmp;
};

struct Decoded {
    Image image;
    Metadata metadata;
};

struct Colour {
    std::uint8_t red = 0;
    std::uint8_t green = 0;
    std::uint8_t blue = 0;
};

// Every pixel of this colour turns white: what is left of one colour that a file declares transparent.
void whiten(Image& image, Colour colour);

// Each takes a whole file that starts with the format's signature. They throw Damaged, Unidentified,
// TooLarge.
Decoded decode_png(Bytes file);
Decoded decode_jpeg(Bytes file);
Decoded decode_bmp(Bytes file);
Decoded decode_gif(Bytes file);

}  // namespace fopru
