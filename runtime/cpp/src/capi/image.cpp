#include <chrono>

#include "capi/handles.h"

namespace fopru {

namespace {

PixelFormat format_of(int format) {
    switch (format) {
        case FOPRU_RGB:
            return PixelFormat::rgb;
        case FOPRU_BGR:
            return PixelFormat::bgr;
        case FOPRU_RGBA:
            return PixelFormat::rgba;
        case FOPRU_BGRA:
            return PixelFormat::bgra;
        case FOPRU_GRAY:
            return PixelFormat::gray;
        case FOPRU_NV12:
            return PixelFormat::nv12;
    }
    throw ImageError("format of a frame is " + std::to_string(format) +
                     ", expected a value of fopru_pixel_format");
}

ColourMatrix matrix_of(int matrix) {
    switch (matrix) {
        case FOPRU_BT601_LIMITED:
            return ColourMatrix::bt601_limited;
        case FOPRU_BT601_FULL:
            return ColourMatrix::bt601_full;
        case FOPRU_BT709_LIMITED:
            return ColourMatrix::bt709_limited;
        case FOPRU_BT709_FULL:
            return ColourMatrix::bt709_full;
    }
    throw ImageError("matrix of a frame is " + std::to_string(matrix) +
                     ", expected a value of fopru_colour_matrix");
}

Image image_of(const fopru_frame& frame) {
    return image_from_frame({format_of(frame.format), frame.height, frame.width, frame.data, frame.stride,
                             frame.chroma, frame.chroma_stride, matrix_of(frame.matrix)});
}

// Prepares what `read` returns. No `Claim`: the next frame may be prepared while the generator answers.
template <class Read>
fopru_status prepared(const fopru_generator* generator, fopru_image** out, const Read& read) {
    return guarded([&] {
        need(out, "out");
        const Worker& worker = *need(generator, "generator").worker;
        const auto start = std::chrono::steady_clock::now();
        auto image = std::make_unique<fopru_image>();
        image->bundle = worker.bundle;
        image->image = worker.generator.preprocess(read());
        const ImagePlan& plan = image->image.plan;
        image->tokens = plan.placeholders() - worker.bundle->manifest().layout->prefix_tokens() *
                                                  static_cast<std::int64_t>(plan.units.size());
        image->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        *out = image.release();
    });
}

}  // namespace

}  // namespace fopru

extern "C" {

fopru_status fopru_image_from_file(fopru_generator* generator, const char* path, fopru_image** out) {
    return fopru::prepared(generator, out, [&] { return fopru::read_image(fopru::need_text(path, "path")); });
}

fopru_status fopru_image_from_bytes(fopru_generator* generator, const uint8_t* bytes, size_t size,
                                    fopru_image** out) {
    return fopru::prepared(generator, out, [&] {
        if (size > 0) fopru::need(bytes, "bytes");
        return fopru::decode_image(bytes, size,
                                   "an image of " + std::to_string(size) + " bytes");
    });
}

fopru_status fopru_image_from_frame(fopru_generator* generator, const fopru_frame* frame, fopru_image** out) {
    return fopru::prepared(generator, out, [&] { return fopru::image_of(fopru::need(frame, "frame")); });
}

void fopru_image_free(fopru_image* image) { const std::unique_ptr<fopru_image> taken(image); }

const float* fopru_image_pixels(const fopru_image* image, int64_t dims[6], int* rank) {
    if (image == nullptr || image->image.pixels.shape.size() > 6) return nullptr;
    const auto& shape = image->image.pixels.shape;
    if (dims != nullptr) {
        for (size_t i = 0; i < shape.size(); ++i) dims[i] = shape[i];
    }
    if (rank != nullptr) *rank = static_cast<int>(shape.size());
    return image->image.pixels.values.data();
}

int64_t fopru_image_tokens(const fopru_image* image) { return image ? image->tokens : 0; }

}  // extern "C"
