// JPEG by stb_image, for builds without libjpeg: another upsampling, so not Pillow's bytes. CMYK is
// refused, because stb_image has no rule for its inversion, and so is what ends before its picture does.
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>

// Zeros: a damaged file may use a Huffman table that it never defines, and what lies there would be indices.
#define STBI_MALLOC(bytes) std::calloc(1, bytes)
#define STBI_REALLOC(block, bytes) std::realloc(block, bytes)
#define STBI_FREE(block) std::free(block)
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_NO_FAILURE_STRINGS
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#if defined(__GNUC__)  // warnings of a file that is not ours
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
#include <stb/stb_image.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#include "image/jpeg_header.h"

namespace fopru {
namespace {

struct Released {
    void operator()(stbi_uc* pixels) const { stbi_image_free(pixels); }
};

bool has_end(Bytes file) {
    for (std::size_t i = file.size; i >= 2; --i) {
        if (file.data[i - 2] == 0xFF && file.data[i - 1] == 0xD9) {
            return true;
        }
    }
    return false;
}

// stb_image writes beyond its table where a Huffman table counts more than 256 codes, so none may. A marker
// is the same two bytes wherever it stands, and the segments of a file need not be walked.
void check_huffman_tables(Bytes file) {
    for (std::size_t i = 0; i + 4 <= file.size; ++i) {
        if (file.data[i] != 0xFF || file.data[i + 1] != 0xC4) {
            continue;
        }
        const std::size_t length = file.u16(i + 2, true);
        const Bytes rest = file.from(i + 4);
        std::size_t left = length < 2 ? 0 : length - 2;
        for (std::size_t at = 0; left > 0 && at < rest.size;) {
            std::size_t codes = 0;
            for (std::size_t k = at + 1; k <= at + 16 && k < rest.size; ++k) {
                codes += rest.data[k];
            }
            if (codes > 256) {
                throw Damaged("broken data stream when reading image file");
            }
            at += 17 + codes;
            left -= left < 17 + codes ? left : 17 + codes;
        }
    }
}

}  // namespace

const char* jpeg_decoder() { return "stb_image"; }

Decoded decode_jpeg(Bytes file) {
    JpegHeader header = read_jpeg_header(file);
    if (header.components == 4) {
        throw Damaged("this build has no libjpeg and cannot read CMYK");
    }
    if (!has_end(file)) {
        throw Damaged("image file is truncated");
    }
    check_huffman_tables(file);
    int width = 0;
    int height = 0;
    int components = 0;
    const std::unique_ptr<stbi_uc, Released> pixels(
        file.size > INT_MAX
            ? nullptr
            : stbi_load_from_memory(file.data, static_cast<int>(file.size), &width, &height, &components, 3));
    if (!pixels) {
        throw Damaged("broken data stream when reading image file");
    }
    if (static_cast<std::uint32_t>(width) != header.width ||
        static_cast<std::uint32_t>(height) != header.height) {
        throw Damaged("it has two sizes");
    }
    Decoded decoded{Image(height, width), std::move(header.metadata)};
    std::memcpy(decoded.image.pixels.data(), pixels.get(), decoded.image.pixels.size());
    return decoded;
}

}  // namespace fopru
