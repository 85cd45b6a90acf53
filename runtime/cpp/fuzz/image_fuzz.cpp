// An image file: decoded, and resized to a small size with every filter.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "image/image.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const fopru::Image image = fopru::decode_image(data, size, "image");
        // Time goes with the pixels, and finds nothing more in many of them.
        if (image.pixels.size() > (std::size_t{1} << 20)) return 0;
        for (int filter = 0; filter <= 5; ++filter) fopru::resize(image, 7, 5, filter);
    } catch (const fopru::Error&) {
    }
    return 0;
}
