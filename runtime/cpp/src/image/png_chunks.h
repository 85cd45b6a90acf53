// Private to src/image: a PNG file as its chunks, before any pixel is unpacked.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "image/decode.h"

namespace fopru {

enum class PngColour : std::uint8_t { gray = 0, rgb = 2, palette = 3, gray_alpha = 4, rgba = 6 };

struct PngHeader {
    std::uint32_t width = 0;
    std::uint32_t height = 0;
    int depth = 0;  // bits of a sample: 1, 2, 4, 8, 16, as the colour type allows
    PngColour colour = PngColour::rgb;
    bool interlaced = false;

    int samples() const;  // of a pixel: 1 to 4
    int pixel_bits() const { return samples() * depth; }
};

struct PngFile {
    PngHeader header;
    std::optional<Bytes> palette;       // PLTE of a palette image: RGB triples
    std::optional<Bytes> transparency;  // tRNS
    std::vector<Bytes> data;            // IDAT, in order, without a gap between them
    Metadata metadata;
};

// Reads all chunks; those before the pixels must have right checksums, as Pillow asks. `file` must outlive
// the result. Throws Damaged, Unidentified (a kind of PNG that there is not), TooLarge.
PngFile read_png_chunks(Bytes file);

}  // namespace fopru
