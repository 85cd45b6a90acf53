// Finds out the format, and turns what the decoders say into the sentences of
// `runtime.preprocess.load_image`.
#include "image/decode.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <system_error>

#include "base/error.h"
#include "image/exif.h"

namespace fopru {
namespace {

Decoded decode_any(Bytes file) {
    if (file.starts_with("\xFF\xD8\xFF", 3)) {
        return decode_jpeg(file);
    }
    if (file.starts_with("\x89PNG\r\n\x1A\n", 8)) {
        return decode_png(file);
    }
    if (file.starts_with("GIF87a", 6) || file.starts_with("GIF89a", 6)) {
        return decode_gif(file);
    }
    if (file.starts_with("BM", 2)) {
        return decode_bmp(file);
    }
    throw Unidentified();
}

[[noreturn]] void refuse_to_open(const std::string& path, int error) {
    throw ImageError("the image file " + path + " cannot be opened (" + std::strerror(error) +
                     "): check the path");
}

std::vector<std::uint8_t> file_bytes(const std::string& path) {
    std::error_code ignored;
    const std::filesystem::file_status status = std::filesystem::status(path, ignored);
    if (path.empty() || status.type() == std::filesystem::file_type::not_found) {
        throw ImageError("there is no image file at " + path + ": check the path");
    }
    if (std::filesystem::is_directory(status)) {
        throw ImageError(path + " is a directory, expected an image file: check the path");
    }
    struct Closed {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    const std::unique_ptr<std::FILE, Closed> file(std::fopen(path.c_str(), "rb"));
    if (!file) {
        refuse_to_open(path, errno);
    }
    std::vector<std::uint8_t> bytes;
    std::vector<std::uint8_t> block(std::size_t{1} << 16);
    while (const std::size_t got = std::fread(block.data(), 1, block.size(), file.get())) {
        if (bytes.size() > most_file_bytes - got) {
            throw ImageError(path + " is longer than " + std::to_string(most_file_bytes >> 20) +
                             " MiB, the most that an image file may have: convert it to PNG or JPEG");
        }
        bytes.insert(bytes.end(), block.begin(), block.begin() + static_cast<std::ptrdiff_t>(got));
    }
    if (std::ferror(file.get()) != 0) {
        refuse_to_open(path, errno);
    }
    return bytes;
}

}  // namespace

bool Bytes::starts_with(const char* text, std::size_t length) const {
    return size >= length && std::memcmp(data, text, length) == 0;
}

Bytes Bytes::part(std::size_t offset, std::size_t length) const {
    if (offset > size || length > size - offset) {
        throw Damaged("Truncated File Read");
    }
    return {data + offset, length};
}

Bytes Bytes::from(std::size_t offset) const {
    return offset >= size ? Bytes{} : Bytes{data + offset, size - offset};
}

std::uint8_t Bytes::u8(std::size_t offset) const { return part(offset, 1).data[0]; }

std::uint32_t Bytes::u16(std::size_t offset, bool big) const {
    const Bytes at = part(offset, 2);
    const std::uint32_t first = at.data[0];
    const std::uint32_t second = at.data[1];
    return big ? first << 8 | second : second << 8 | first;
}

std::uint32_t Bytes::u32(std::size_t offset, bool big) const {
    const std::uint32_t first = u16(offset, big);
    const std::uint32_t second = u16(offset + 2, big);
    return big ? first << 16 | second : second << 16 | first;
}

void check_size(std::uint64_t width, std::uint64_t height) {
    if (width == 0 || height == 0) {
        throw Unidentified();
    }
    const std::uint64_t pixels = width * height;  // sides of files have 32 bits at most
    const std::uint64_t limit = pixels > 2 * max_pixels ? 2 * max_pixels : max_pixels;
    if (pixels > limit) {
        throw TooLarge("Image size (" + std::to_string(pixels) + " pixels) exceeds limit of " +
                       std::to_string(limit) + " pixels, could be decompression bomb DOS attack.");
    }
}

void whiten(Image& image, Colour colour) {
    for (std::size_t i = 0; i + 2 < image.pixels.size(); i += 3) {
        std::uint8_t* pixel = image.pixels.data() + i;
        if (pixel[0] == colour.red && pixel[1] == colour.green && pixel[2] == colour.blue) {
            pixel[0] = pixel[1] = pixel[2] = 255;
        }
    }
}

Image read_image(const std::string& path) {
    const std::vector<std::uint8_t> bytes = file_bytes(path);
    return decode_image(bytes.data(), bytes.size(), path);
}

Image decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name) {
    try {
        Decoded decoded = decode_any({bytes, size});
        const int orientation = orientation_of(decoded.metadata);
        return upright(std::move(decoded.image), orientation);
    } catch (const Unidentified&) {
        throw ImageError(name + " is not an image that this runtime can read: convert it to PNG or JPEG");
    } catch (const TooLarge& error) {
        throw ImageError(name + " is too large to open safely (" + error.what() + "): make it smaller first");
    } catch (const Damaged& error) {
        throw ImageError(name + " cannot be read as an image (" + error.what() + "): the file is damaged");
    } catch (const std::bad_alloc&) {
        throw ImageError(name + " does not fit into the memory that is free: make it smaller first");
    }
}

}  // namespace fopru
