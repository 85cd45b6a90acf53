// Frames of cameras to RGB.
#include <algorithm>
#include <cstring>

#include "../kernels/nv12.h"
#include "base/error.h"
#include "image/image.h"

namespace fopru {
namespace {

std::size_t bytes_of_pixel(PixelFormat format) {
    switch (format) {
        case PixelFormat::rgb:
        case PixelFormat::bgr:
            return 3;
        case PixelFormat::rgba:
        case PixelFormat::bgra:
            return 4;
        case PixelFormat::gray:
        case PixelFormat::nv12:
            return 1;
    }
    throw ImageError("a frame is of an unknown format: expected rgb, bgr, rgba, bgra, gray or nv12");
}

void check_frame(const Frame& frame) {
    const std::string size = std::to_string(frame.height) + " x " + std::to_string(frame.width);
    const bool fits =
        frame.height >= 1 && frame.width >= 1 &&
        static_cast<std::size_t>(frame.height) <= max_pixels / static_cast<std::size_t>(frame.width);
    if (!fits) {
        throw ImageError("a frame is " + size +
                         " pixels: sides are at least 1 and their product is at most " +
                         std::to_string(max_pixels));
    }
    const std::size_t row = static_cast<std::size_t>(frame.width) * bytes_of_pixel(frame.format);
    if (frame.data == nullptr) {
        throw ImageError("a frame has no data: its pointer is null");
    }
    if (frame.stride < row) {
        throw ImageError("a frame has " + std::to_string(frame.stride) +
                         " bytes from a row to the next, and a row has " + std::to_string(row) +
                         ": the stride is counted in bytes");
    }
    if (frame.format != PixelFormat::nv12) {
        return;
    }
    if (frame.height % 2 != 0 || frame.width % 2 != 0) {
        throw ImageError("an NV12 frame is " + size + " pixels: both sides must be even");
    }
    if (frame.chroma == nullptr) {
        throw ImageError("an NV12 frame has no chroma: its pointer is null");
    }
    if (frame.chroma_stride < row) {
        throw ImageError("an NV12 frame has " + std::to_string(frame.chroma_stride) +
                         " bytes from a row of chroma to the next, and a row has " + std::to_string(row));
    }
    if (static_cast<std::size_t>(frame.matrix) >= std::size(kNv12Factors)) {
        throw ImageError(
            "an NV12 frame is of an unknown colour matrix: expected BT.601 or BT.709, limited or full");
    }
}

std::uint8_t level(std::int32_t scaled) {
    return static_cast<std::uint8_t>(std::clamp((scaled + (1 << 15)) >> 16, 0, 255));
}

void copy_nv12(const Frame& frame, Image& image) {
    const Nv12Factors& k = kNv12Factors[static_cast<std::size_t>(frame.matrix)];
    for (int y = 0; y < frame.height; ++y) {
        const std::uint8_t* luma = frame.data + static_cast<std::size_t>(y) * frame.stride;
        const std::uint8_t* chroma = frame.chroma + static_cast<std::size_t>(y / 2) * frame.chroma_stride;
        std::uint8_t* to = image.row(y);
        for (int x = 0; x < frame.width; ++x, to += 3) {
            const std::int32_t base = k.luma * (luma[x] - k.offset);
            const std::int32_t u = chroma[x / 2 * 2] - 128;
            const std::int32_t v = chroma[x / 2 * 2 + 1] - 128;
            to[0] = level(base + k.red_v * v);
            to[1] = level(base + k.green_u * u + k.green_v * v);
            to[2] = level(base + k.blue_u * u);
        }
    }
}

void copy_packed(const Frame& frame, Image& image) {
    const std::size_t step = bytes_of_pixel(frame.format);
    const bool gray = frame.format == PixelFormat::gray;
    const bool swapped = frame.format == PixelFormat::bgr || frame.format == PixelFormat::bgra;
    const std::size_t red = swapped ? 2 : 0;
    const std::size_t green = gray ? 0 : 1;
    const std::size_t blue = gray || swapped ? 0 : 2;
    for (int y = 0; y < frame.height; ++y) {
        const std::uint8_t* from = frame.data + static_cast<std::size_t>(y) * frame.stride;
        std::uint8_t* to = image.row(y);
        if (frame.format == PixelFormat::rgb) {
            std::memcpy(to, from, static_cast<std::size_t>(frame.width) * 3);
            continue;
        }
        for (int x = 0; x < frame.width; ++x, from += step, to += 3) {
            to[0] = from[red];
            to[1] = from[green];
            to[2] = from[blue];
        }
    }
}

}  // namespace

Image image_from_frame(const Frame& frame) {
    check_frame(frame);
    Image image(frame.height, frame.width);
    if (frame.format == PixelFormat::nv12) {
        copy_nv12(frame, image);
    } else {
        copy_packed(frame, image);
    }
    return image;
}

}  // namespace fopru
