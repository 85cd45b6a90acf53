// What tests/test_cpp_image*.py cannot see from outside: memory, threads, and input that no Python library
// writes.
#include "image/image.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>

#include "base/error.h"
#include "image/exif.h"

namespace {

using fopru::decode_image;
using fopru::Image;
using fopru::ImageError;

using Bytes = std::vector<std::uint8_t>;

// Refuses or decodes; anything else (a crash, another exception) fails the test.
bool decodes(const Bytes& bytes) {
    try {
        const Image image = decode_image(bytes.data(), bytes.size(), "it");
        CHECK(image.pixels.size() ==
              static_cast<std::size_t>(image.height) * static_cast<std::size_t>(image.width) * 3);
        return true;
    } catch (const ImageError& error) {
        CHECK(std::string(error.what()).substr(0, 3) == "it ");
        return false;
    }
}

Bytes bytes_of(std::initializer_list<int> values) {
    Bytes bytes;
    for (const int value : values) {
        bytes.push_back(static_cast<std::uint8_t>(value));
    }
    return bytes;
}

// 3 x 2 pixels: a palette of two colours, no transparency, pixels 0 1 0 1 0 1.
Bytes small_gif() {
    return bytes_of({'G', 'I', 'F', '8', '9', 'a', 3, 0, 2, 0, 0x80, 0, 0,    9,    8,    7,    6, 5,  4,
                     ',', 0,   0,   0,   0,   3,   0, 2, 0, 0, 2,    4, 0x44, 0x12, 0x28, 0x05, 0, ';'});
}

// 2 x 2 pixels of 24 bits, from the bottom up.
Bytes small_bmp() {
    Bytes bytes = bytes_of(
        {'B', 'M', 0, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 24, 0});
    bytes.resize(54);
    for (int i = 0; i < 16; ++i) {
        bytes.push_back(static_cast<std::uint8_t>(i));
    }
    return bytes;
}

Image ramp(int height, int width) {
    Image image(height, width);
    for (std::size_t i = 0; i < image.pixels.size(); ++i) {
        image.pixels[i] = static_cast<std::uint8_t>(i * 37 % 256);
    }
    return image;
}

}  // namespace

TEST_CASE("an image is black at first, moves, and is copied by name alone") {
    Image image(2, 3);
    CHECK(image.pixels == Bytes(18, 0));
    image.row(1)[2] = 7;
    const Image copy = image.clone();
    const std::uint8_t* pixels = image.pixels.data();
    const Image moved = std::move(image);
    CHECK(moved.pixels.data() == pixels);
    CHECK(copy.pixels == moved.pixels);
    CHECK(copy.pixels[11] == 7);
}

TEST_CASE("small files decode") {
    const Bytes bmp = small_bmp();
    const Image image = decode_image(bmp.data(), bmp.size(), "it");
    CHECK(image.height == 2);
    CHECK(image.width == 2);
    CHECK(image.pixels == bytes_of({10, 9, 8, 13, 12, 11, 2, 1, 0, 5, 4, 3}));
    CHECK(decodes(small_gif()));
}

TEST_CASE("nothing, a signature alone and every cut are refused in a sentence") {
    CHECK(!decodes({}));
    CHECK_THROWS_WITH_AS(decode_image(nullptr, 0, "it"),
                         "it is not an image that this runtime can read: convert it to PNG or JPEG",
                         ImageError);
    for (const char* signature : {"BM", "GIF89a", "\x89PNG\r\n\x1A\n", "\xFF\xD8\xFF"}) {
        Bytes bytes(signature, signature + std::strlen(signature));
        CHECK(!decodes(bytes));
        bytes.resize(64, 0xFF);
        CHECK(!decodes(bytes));
    }
    const Bytes bmp = small_bmp();
    for (std::size_t size = 0; size + 2 < bmp.size(); ++size) {
        CHECK(!decodes(Bytes(bmp.begin(), bmp.begin() + static_cast<std::ptrdiff_t>(size))));
    }
}

TEST_CASE("damaged files are decoded or refused, never anything else") {
    std::mt19937 random(7);
    for (const Bytes& whole : {small_gif(), small_bmp()}) {
        for (int i = 0; i < 3000; ++i) {
            Bytes bytes = whole;
            for (std::size_t k = 0; k < 1 + random() % 3; ++k) {
                // not the sides: large ones are allowed and slow
                const std::size_t at = 26 + random() % (bytes.size() - 26);
                bytes[at] = static_cast<std::uint8_t>(random());
            }
            decodes(bytes);
        }
    }
}

TEST_CASE("the eight rotations") {
    Image image(2, 3);  // levels 0 1 2 / 3 4 5
    for (std::size_t i = 0; i < 18; ++i) {
        image.pixels[i] = static_cast<std::uint8_t>(i / 3);
    }
    const auto levels = [&](int orientation) {
        const Image turned = fopru::upright(image.clone(), orientation);
        CHECK(turned.height == (orientation >= 5 ? 3 : 2));
        Bytes out;
        for (std::size_t i = 0; i < turned.pixels.size(); i += 3) {
            out.push_back(turned.pixels[i]);
        }
        return out;
    };
    CHECK(levels(1) == bytes_of({0, 1, 2, 3, 4, 5}));
    CHECK(levels(2) == bytes_of({2, 1, 0, 5, 4, 3}));
    CHECK(levels(3) == bytes_of({5, 4, 3, 2, 1, 0}));
    CHECK(levels(4) == bytes_of({3, 4, 5, 0, 1, 2}));
    CHECK(levels(5) == bytes_of({0, 3, 1, 4, 2, 5}));
    CHECK(levels(6) == bytes_of({3, 0, 4, 1, 5, 2}));
    CHECK(levels(7) == bytes_of({5, 2, 4, 1, 3, 0}));
    CHECK(levels(8) == bytes_of({2, 5, 1, 4, 0, 3}));
}

TEST_CASE("random Exif records are read or refused") {
    std::mt19937 random(1);
    for (int i = 0; i < 5000; ++i) {
        std::string record =
            i % 2 == 0 ? std::string("MM\0*\0\0\0\x08", 8) : std::string("II*\0\x08\0\0\0", 8);
        for (std::size_t k = random() % 60; k > 0; --k) {
            record.push_back(static_cast<char>(random() % 4 == 0 ? 0x12 : random() % 14));
        }
        const int orientation = fopru::orientation_of({record, ""});
        CHECK(orientation >= 1);
        CHECK(orientation <= 8);
    }
    CHECK_THROWS_AS(fopru::orientation_of({"not a TIFF file", ""}), fopru::Damaged);
}

TEST_CASE("a resize gives the same bytes in any number of threads") {
    const Image image = ramp(200, 123);
    const Image expected = fopru::resize(image, 61, 70, 3);
    std::vector<Image> results(4);
    std::vector<std::thread> threads;
    for (Image& result : results) {
        threads.emplace_back([&] { result = fopru::resize(image, 61, 70, 3); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (const Image& result : results) {
        CHECK(result.pixels == expected.pixels);
    }
}

TEST_CASE("an empty image cannot be resized") {
    CHECK_THROWS_WITH_AS(fopru::resize(Image(), 2, 2, 3), "an image is 0 x 0 pixels: it needs at least one",
                         ImageError);
}
