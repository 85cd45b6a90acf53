// Runs src/image for tests/test_cpp_image.py. A line of standard input is a command, its parts divided by
// tabs:
//   decode FILE OUT
//   resize PIXELS HEIGHT WIDTH TO_HEIGHT TO_WIDTH FILTER OUT
//   frame BYTES FORMAT HEIGHT WIDTH STRIDE CHROMA_OFFSET CHROMA_STRIDE MATRIX OUT
// Pixels go to OUT as RGB; the answer is a line {"height", "width"} or {"error"}. `decoder` gives
// {"decoder"}, of JPEG.
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "base/error.h"
#include "base/json.h"
#include "image/image.h"

namespace {

using fopru::Image;
using fopru::Json;

std::vector<std::uint8_t> bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::vector<std::uint8_t>(std::istreambuf_iterator<char>(file), {});
}

Image image_of(const std::string& path, int height, int width) {
    Image image(height, width);
    image.pixels = bytes_of(path);
    return image;
}

Image frame_image(const std::vector<std::string>& parts) {
    const std::vector<std::uint8_t> bytes = bytes_of(parts.at(1));
    const auto number = [&](std::size_t i) { return std::stoi(parts.at(i)); };
    fopru::Frame frame;
    frame.format = static_cast<fopru::PixelFormat>(number(2));
    frame.height = number(3);
    frame.width = number(4);
    frame.data = bytes.empty() ? nullptr : bytes.data();
    frame.stride = static_cast<std::size_t>(number(5));
    frame.chroma = number(6) > 0 ? bytes.data() + number(6) : nullptr;
    frame.chroma_stride = static_cast<std::size_t>(number(7));
    frame.matrix = static_cast<fopru::ColourMatrix>(number(8));
    return fopru::image_from_frame(frame);
}

Image run(const std::vector<std::string>& parts) {
    const auto number = [&](std::size_t i) { return std::stoi(parts.at(i)); };
    const std::string& command = parts.at(0);
    if (command == "decode") {
        return fopru::read_image(parts.at(1));
    }
    if (command == "resize") {
        return fopru::resize(image_of(parts.at(1), number(2), number(3)), number(4), number(5), number(6));
    }
    return frame_image(parts);
}

Json answer(const std::string& line) {
    std::vector<std::string> parts;
    std::istringstream words(line);
    for (std::string part; std::getline(words, part, '\t');) {
        parts.push_back(part);
    }
    if (parts.at(0) == "decoder") {
        return Json(Json::Object{{"decoder", Json(fopru::jpeg_decoder())}});
    }
    try {
        const Image image = run(parts);
        std::ofstream out(parts.back(), std::ios::binary);
        out.write(reinterpret_cast<const char*>(image.pixels.data()),
                  static_cast<std::streamsize>(image.pixels.size()));
        return Json(Json::Object{{"height", Json(image.height)}, {"width", Json(image.width)}});
    } catch (const fopru::ImageError& error) {
        return Json(Json::Object{{"error", Json(error.what())}});
    }
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::cout << answer(line).dump() << std::endl;
    }
    return 0;
}
