// Where there is no libjpeg. stb_image is no replacement: its pixels are others (up to 18 levels at 4:2:2), and
// damaged files made it read and write beyond its tables.
#include "image/decode.h"

namespace fopru {

const char* jpeg_decoder() { return "none"; }

Decoded decode_jpeg(Bytes) {
    throw Damaged("this build reads no JPEG: build it with libjpeg, or give PNG or raw pixels");
}

}  // namespace fopru
