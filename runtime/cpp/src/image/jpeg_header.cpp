#include "image/jpeg_header.h"

#include <string_view>

namespace fopru {
namespace {

bool is_frame(std::uint32_t marker) {  // SOF0 to SOF15 and DHP, without DHT, JPG and DAC
    return marker == 0xDE ||
           (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC);
}

bool stands_alone(std::uint32_t marker) {  // JPG, RST, SOI, EOI, JPG0 to JPG13
    return marker == 0xC8 || (marker >= 0xD0 && marker <= 0xD9) || (marker >= 0xF0 && marker <= 0xFD);
}

void take_frame(JpegHeader& header, Bytes body) {
    const int bits = body.u8(0);
    if (bits != 8) {
        throw Unidentified();
    }
    header.height = body.u16(1, true);
    header.width = body.u16(3, true);
    header.components = body.u8(5);
    if (header.components != 1 && header.components != 3 && header.components != 4) {
        throw Unidentified();
    }
}

void take_application(JpegHeader& header, Bytes body) {
    constexpr std::string_view exif("Exif\0\0", 6);
    constexpr std::string_view xmp("http://ns.adobe.com/xap/1.0/\0", 29);
    const std::string_view text(reinterpret_cast<const char*>(body.data), body.size);
    Metadata& metadata = header.metadata;
    if (text.substr(0, exif.size()) == exif) {
        metadata.exif +=
            metadata.exif.empty() ? text : text.substr(exif.size());  // long records go on in the next one
    } else if (text.substr(0, xmp.size()) == xmp) {
        metadata.xmp = text.substr(xmp.size());
    }
}

}  // namespace

JpegHeader read_jpeg_header(Bytes file) {
    JpegHeader header;
    std::size_t at = 2;
    for (;;) {
        while (file.u8(at) != 0xFF) {
            ++at;
        }
        while (file.u8(at) == 0xFF) {
            ++at;
        }
        const std::uint32_t marker = file.u8(at++);
        if (marker == 0 || stands_alone(marker)) {
            continue;
        }
        if (marker < 0xC0 || marker == 0xFF) {
            throw Unidentified();
        }
        const std::uint32_t length = file.u16(at, true);
        const Bytes body = file.part(at + 2, length < 2 ? 0 : length - 2);
        at += 2 + body.size;
        if (is_frame(marker)) {
            take_frame(header, body);
        } else if (marker == 0xE1) {
            take_application(header, body);
        } else if (marker == 0xDA) {
            break;
        }
    }
    check_size(header.width, header.height);
    return header;
}

Colour colour_of_cmyk(const std::uint8_t* pixel) {
    const int light = pixel[3];  // inverted: 255 - key
    const auto channel = [&](int inverted) {
        const int product = (255 - inverted) * light + 128;
        return static_cast<std::uint8_t>(light - (((product >> 8) + product) >> 8));
    };
    return {channel(pixel[0]), channel(pixel[1]), channel(pixel[2])};
}

}  // namespace fopru
