// Owners of what fopru.h hands over: bundles, images, visual tokens, answers; and its errors. See fopru.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fopru/fopru.h"

namespace fopru {
inline namespace api {  // not the names inside the library, should both be linked into one program

// What a call came to: `status` as in fopru.h, `what()` one sentence.
class Failure : public std::runtime_error {
public:
    Failure(fopru_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    fopru_status status() const noexcept { return status_; }

private:
    fopru_status status_;
};

inline void check(fopru_status status) {
    if (status != FOPRU_OK) throw Failure(status, fopru_last_error());
}

// Frees what a pointer of fopru.h owns.
template <class T, void (*free_it)(T*)>
struct Freer {
    void operator()(T* object) const noexcept { free_it(object); }
};
template <class T, void (*free_it)(T*)>
using Owned = std::unique_ptr<T, Freer<T, free_it>>;

class Bundle {
public:
    explicit Bundle(const std::string& path, bool verify = true) {
        fopru_bundle* opened = nullptr;
        check(fopru_bundle_open(path.c_str(), verify ? FOPRU_VERIFY : FOPRU_NO_VERIFY, &opened));
        bundle_.reset(opened);
    }
    std::string info() const { return fopru_bundle_info(get()); }  // JSON
    fopru_bundle* get() const noexcept { return bundle_.get(); }

private:
    Owned<fopru_bundle, fopru_bundle_free> bundle_;
};

// As the encoder takes it.
class Image {
public:
    explicit Image(fopru_image* owned) : image_(owned) {}
    std::int64_t tokens() const { return fopru_image_tokens(get()); }  // visual tokens before pruning
    std::vector<std::int64_t> shape() const {
        std::int64_t dims[6] = {};
        int rank = 0;
        fopru_image_pixels(get(), dims, &rank);
        return {dims, dims + rank};
    }
    const float* pixels() const {  // of that shape; lives as long as the image
        std::int64_t dims[6] = {};
        int rank = 0;
        return fopru_image_pixels(get(), dims, &rank);
    }
    const fopru_image* get() const noexcept { return image_.get(); }

private:
    Owned<fopru_image, fopru_image_free> image_;
};

// Visual tokens of images.
class Encoded {
public:
    explicit Encoded(fopru_encoded* owned) : encoded_(owned) {}
    // float32 [rows, width] of all images; `width` gets its second dim.
    std::vector<float> features(std::int64_t* width = nullptr) const {
        std::int64_t rows = 0, columns = 0;
        check(fopru_encoded_features(get(), nullptr, &rows, &columns));
        std::vector<float> values(static_cast<std::size_t>(rows * columns));
        check(fopru_encoded_features(get(), values.data(), &rows, &columns));
        if (width != nullptr) *width = columns;
        return values;
    }
    std::vector<std::int64_t> kept(std::size_t image) const {
        std::size_t count = 0;
        const std::int64_t* indices = fopru_encoded_kept(get(), image, &count);
        return {indices, indices + count};
    }
    const fopru_encoded* get() const noexcept { return encoded_.get(); }

private:
    Owned<fopru_encoded, fopru_encoded_free> encoded_;
};

class Result {
public:
    explicit Result(fopru_result* owned) : result_(owned) {}
    std::string text() const { return fopru_result_text(get()); }
    std::string finish_reason() const { return fopru_result_finish_reason(get()); }
    std::vector<std::int64_t> token_ids() const {
        std::size_t count = 0;
        const std::int64_t* ids = fopru_result_tokens(get(), &count);
        return {ids, ids + count};
    }
    bool pruned() const { return fopru_result_pruned(get()) != 0; }
    std::string reason() const {  // why not pruned; "" where it was
        const char* reason = fopru_result_reason(get());
        return reason ? reason : "";
    }
    std::size_t images() const { return fopru_result_images(get()); }
    std::int64_t tokens_before(std::size_t image) const { return fopru_result_tokens_before(get(), image); }
    std::int64_t tokens_after(std::size_t image) const { return fopru_result_tokens_after(get(), image); }
    std::vector<std::int64_t> kept(std::size_t image) const {
        std::size_t count = 0;
        const std::int64_t* indices = fopru_result_kept(get(), image, &count);
        return {indices, indices + count};
    }
    fopru_timings timings() const { return fopru_result_timings(get()); }
    std::string json() const { return fopru_result_json(get()); }
    const fopru_result* get() const noexcept { return result_.get(); }

private:
    Owned<fopru_result, fopru_result_free> result_;
};

}  // namespace api
}  // namespace fopru
