// A request as Python gives it, and the C struct that points into it.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <string>
#include <vector>

#include "fopru/fopru.h"

namespace fopru_python {

// Throws the exception of `runtime.errors` that belongs to a status, with the library's sentence.
void check(fopru_status status);

// Owns one C object; Python frees it with the last reference.
template <typename T, void (*release)(T*)>
class Handle {
public:
    explicit Handle(T* object) : object_(object) {}
    ~Handle() { release(object_); }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    T* get() const { return object_; }

private:
    T* object_;
};

using BundleHandle = Handle<fopru_bundle, fopru_bundle_free>;
using ImageHandle = Handle<fopru_image, fopru_image_free>;
using EncodedHandle = Handle<fopru_encoded, fopru_encoded_free>;

// Keeps every string and image alive that the C struct points to. Made from a mapping whose keys are the fields of
// `runtime.request.Request`; `images` and those of `history` are Images. Neither copied nor moved.
class RequestData {
public:
    explicit RequestData(const nanobind::dict& fields);
    RequestData(const RequestData&) = delete;
    RequestData& operator=(const RequestData&) = delete;
    const fopru_request* get() const { return &request_; }
    fopru_request* get() { return &request_; }

private:
    struct Turn {
        std::string prompt, answer;
        std::vector<const fopru_image*> images;
    };
    void add_history(const nanobind::handle& turns);

    nanobind::dict fields_;  // holds the images
    std::string prompt_, selector_;
    std::vector<const fopru_image*> images_;
    std::vector<Turn> turns_;
    std::vector<fopru_turn> history_;
    std::vector<std::string> stop_;
    std::vector<const char*> stop_pointers_;
    fopru_request request_;
};

}  // namespace fopru_python
