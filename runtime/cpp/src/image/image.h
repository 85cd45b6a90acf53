// Pixels on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fopru {

// uint8 [height, width, 3], RGB, row-major without gaps. Owns its pixels; costly to copy, so it only moves:
// `clone` says that a copy is meant.
struct Image {
    int height = 0;
    int width = 0;
    std::vector<std::uint8_t> pixels;

    Image() = default;
    Image(int rows, int columns);  // black
    Image(Image&&) = default;
    Image& operator=(Image&&) = default;
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;
    Image clone() const;

    const std::uint8_t* row(int y) const { return pixels.data() + static_cast<std::size_t>(y) * width * 3; }
    std::uint8_t* row(int y) { return pixels.data() + static_cast<std::size_t>(y) * width * 3; }
};

// A frame of a camera, which is read and not kept. `stride` is bytes from a row to the next.
enum class PixelFormat { rgb, bgr, rgba, bgra, gray, nv12 };
enum class ColourMatrix { bt601_limited, bt601_full, bt709_limited, bt709_full };  // of NV12

struct Frame {
    PixelFormat format = PixelFormat::rgb;
    int height = 0;
    int width = 0;
    const std::uint8_t* data = nullptr;  // of NV12: luma
    std::size_t stride = 0;
    const std::uint8_t* chroma = nullptr;  // NV12 alone: (U, V) pairs, height / 2 rows
    std::size_t chroma_stride = 0;
    ColourMatrix matrix = ColourMatrix::bt601_limited;
};

// All throw ImageError. A picture may have at most `max_pixels`; Pillow warns at the same number.
constexpr std::size_t max_pixels = 89478485;
// Bytes of a file that are read at most: the pixels of the largest picture, uncompressed and with alpha.
constexpr std::size_t most_file_bytes = std::size_t{512} << 20;

// PNG, JPEG, BMP, GIF's first picture; rotated as EXIF says, RGB, alpha dropped, as
// `runtime.preprocess.load_image`. Every function here may run in any number of threads at once.
Image read_image(const std::string& path);
// `name` is what messages call it.
Image decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name);
Image image_from_frame(const Frame& frame);
// Who decodes JPEG in this build: "libjpeg" (its pixels are Pillow's), or "none".
const char* jpeg_decoder();

// Pillow's filters by its codes: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming. Antialiased,
// in the integer arithmetic of Pillow's Resample.c, so that every byte is the same.
Image resize(const Image& image, int height, int width, int resample);

}  // namespace fopru
