// Private to src/image: the rotation that a file asks for.
#pragma once

#include "image/decode.h"

namespace fopru {

// 1 to 8 as EXIF counts them; 1 where nothing valid is said. The Exif record goes before the XMP packet, as
// in Pillow. Throws Damaged where an Exif record does not begin as a TIFF file does: Pillow refuses such a
// picture too.
int orientation_of(const Metadata& metadata);

// The picture upright. Values other than 2 to 8 leave it as it is.
Image upright(Image image, int orientation);

}  // namespace fopru
