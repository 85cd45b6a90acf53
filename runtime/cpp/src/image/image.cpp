#include "image/image.h"

namespace fopru {

Image::Image(int rows, int columns)
    : height(rows),
      width(columns),
      pixels(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * 3) {}

Image Image::clone() const {
    Image copy;
    copy.height = height;
    copy.width = width;
    copy.pixels = pixels;
    return copy;
}

}  // namespace fopru
