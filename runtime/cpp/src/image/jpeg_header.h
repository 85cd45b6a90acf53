// Private to src/image: what stands before the first scan of a JPEG file.
#pragma once

#include "image/decode.h"

namespace fopru {

struct JpegHeader {
    std::uint32_t width = 0;
    std::uint32_t height = 0;
    int components = 0;  // 1 gray, 3 colours, 4 CMYK
    Metadata metadata;
};

// Refuses what Pillow's JPEG reader refuses before it decodes. Throws Damaged, Unidentified, TooLarge.
JpegHeader read_jpeg_header(Bytes file);

// CMYK with Adobe's inversion, as Pillow converts it.
Colour colour_of_cmyk(const std::uint8_t* pixel);

}  // namespace fopru
