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

inline std::string version() { return fopru_version(); }  // of the library

// A text as fopru.h takes it, which ends in 0. Failure: it has a 0 inside, behind which it would be cut.
inline const char* c_text(const std::string& text) {
    const std::size_t zero = text.find('\0');
    if (zero == std::string::npos) return text.c_str();
    throw Failure(FOPRU_REQUEST_ERROR, "a text has the character 0 at byte " + std::to_string(zero) +
                                           ", where it would be cut: leave it out");
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
    // `verify`: the SHA-256 of every file is checked. Failure: the library is older than this header, too.
    explicit Bundle(const std::string& path, bool verify = true) {
        if (fopru_abi_version() < FOPRU_ABI_VERSION) {
            throw Failure(FOPRU_INTERNAL_ERROR,
                          "libfopru_rt " + version() + " has ABI " + std::to_string(fopru_abi_version()) +
                              ", but the program was built with headers of ABI " +
                              std::to_string(FOPRU_ABI_VERSION) + ": install a library at least as new");
        }
        fopru_bundle* opened = nullptr;
        check(fopru_bundle_open(c_text(path), verify ? FOPRU_VERIFY : FOPRU_NO_VERIFY, &opened));
        bundle_.reset(opened);
    }
    std::string info() const { return fopru_bundle_info(get()); }  // JSON
    fopru_bundle* get() const noexcept { return bundle_.get(); }

private:
    Owned<fopru_bundle, fopru_bundle_free> bundle_;
};

// As the encoder takes it. A copy is another owner of the same picture, which never changes.
class Image {
public:
    explicit Image(fopru_image* owned) : image_(owned, fopru_image_free) {}
    std::int64_t tokens() const { return fopru_image_tokens(get()); }  // visual tokens before pruning
    std::vector<std::int64_t> shape() const {
        std::int64_t dims[6] = {};
        int rank = 0;
        fopru_image_pixels(get(), dims, &rank);
        return {dims, dims + rank};
    }
    const float* pixels() const {  // of that shape; lives as long as the image
        return fopru_image_pixels(get(), nullptr, nullptr);
    }
    const fopru_image* get() const noexcept { return image_.get(); }

private:
    std::shared_ptr<const fopru_image> image_;
};

// Visual tokens of images. A copy is another owner of the same tokens.
class Encoded {
public:
    explicit Encoded(fopru_encoded* owned) : encoded_(owned, fopru_encoded_free) {}
    std::vector<float> features() const {  // float32 [rows, width] of all images
        std::int64_t rows = 0;
        check(fopru_encoded_features(get(), nullptr, &rows, nullptr));
        std::vector<float> values(static_cast<std::size_t>(rows * width()));
        check(fopru_encoded_features(get(), values.data(), nullptr, nullptr));
        return values;
    }
    std::int64_t width() const {
        std::int64_t columns = 0;
        check(fopru_encoded_features(get(), nullptr, nullptr, &columns));
        return columns;
    }
    std::size_t images() const { return fopru_encoded_images(get()); }
    // As those of a result; empty for an index that there is not.
    std::vector<std::int64_t> kept(std::size_t image) const {
        std::size_t count = 0;
        const std::int64_t* indices = fopru_encoded_kept(get(), image, &count);
        return {indices, indices + count};
    }
    const fopru_encoded* get() const noexcept { return encoded_.get(); }

private:
    std::shared_ptr<const fopru_encoded> encoded_;
};

// Scores of all tokens of the vocabulary, by id; valid until the next call on their generator.
struct Logits {
    const float* values;
    std::int64_t count;

    const float* begin() const noexcept { return values; }
    const float* end() const noexcept { return values + count; }
};

// Of an image index that there is not: 0, and nothing.
class Result {
public:
    explicit Result(fopru_result* owned) : result_(owned) {}
    std::string text() const { return {fopru_result_text(get()), fopru_result_text_length(get())}; }
    std::string finish_reason() const { return fopru_result_finish_reason(get()); }
    std::vector<std::int64_t> token_ids() const {
        std::size_t count = 0;
        const std::int64_t* ids = fopru_result_token_ids(get(), &count);
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
    double ttft() const {  // seconds to the first token, without `load`
        const fopru_timings times = timings();
        return times.preprocess + times.vision + times.embed + times.prefill;
    }
    std::string json() const { return fopru_result_json(get()); }
    const fopru_result* get() const noexcept { return result_.get(); }

private:
    Owned<fopru_result, fopru_result_free> result_;
};

}  // namespace api
}  // namespace fopru
