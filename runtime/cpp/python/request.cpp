#include "request.h"

#include <nanobind/stl/string.h>

#include <new>

namespace nb = nanobind;

namespace fopru_python {
namespace {

const char* exception_of(fopru_status status) {
    switch (status) {
        case FOPRU_BUNDLE_ERROR:
            return "BundleError";
        case FOPRU_IMAGE_ERROR:
            return "ImageError";
        case FOPRU_REQUEST_ERROR:
            return "RequestError";
        case FOPRU_ENGINE_ERROR:
            return "EngineError";
        default:
            return "BackendError";
    }
}

std::vector<const fopru_image*> images_of(const nb::handle& list) {
    std::vector<const fopru_image*> images;
    for (nb::handle image : list) images.push_back(nb::cast<const ImageHandle&>(image).get());
    return images;
}

}  // namespace

void check(fopru_status status) {
    if (status == FOPRU_OK) return;
    if (status == FOPRU_NO_MEMORY) throw std::bad_alloc();
    const std::string message = fopru_last_error();
    nb::object error = nb::module_::import_("runtime.errors").attr(exception_of(status));
    PyErr_SetString(error.ptr(), message.c_str());
    throw nb::python_error();
}

RequestData::RequestData(const nb::dict& fields) : fields_(fields), request_(fopru_request_default()) {
    prompt_ = nb::cast<std::string>(fields["prompt"]);
    selector_ = nb::cast<std::string>(fields["selector"]);
    images_ = images_of(fields["images"]);
    add_history(fields["history"]);
    for (nb::handle text : fields["stop"]) stop_.push_back(nb::cast<std::string>(text));
    for (const std::string& text : stop_) stop_pointers_.push_back(text.c_str());

    request_.prompt = prompt_.c_str();
    request_.selector = selector_.c_str();
    request_.images = images_.data();
    request_.image_count = images_.size();
    request_.history = history_.data();
    request_.history_count = history_.size();
    request_.ratio = fields["ratio"].is_none() ? 0.0 : nb::cast<double>(fields["ratio"]);
    request_.tokens = fields["tokens"].is_none() ? 0 : nb::cast<int64_t>(fields["tokens"]);
    request_.max_new_tokens = nb::cast<int64_t>(fields["max_new_tokens"]);
    request_.temperature = nb::cast<double>(fields["temperature"]);
    request_.top_k = nb::cast<int64_t>(fields["top_k"]);
    request_.top_p = nb::cast<double>(fields["top_p"]);
    request_.min_p = nb::cast<double>(fields["min_p"]);
    request_.repetition_penalty = nb::cast<double>(fields["repetition_penalty"]);
    request_.seed = nb::cast<uint64_t>(fields["seed"]);
    request_.stop = stop_pointers_.data();
    request_.stop_count = stop_pointers_.size();
    request_.ignore_eos = nb::cast<bool>(fields["ignore_eos"]) ? 1 : 0;
}

void RequestData::add_history(const nb::handle& turns) {
    for (nb::handle turn : turns) {
        turns_.push_back({nb::cast<std::string>(turn[0]), nb::cast<std::string>(turn[2]), images_of(turn[1])});
    }
    // Pointers are taken once nothing moves any more.
    for (const Turn& turn : turns_) {
        history_.push_back({turn.prompt.c_str(), turn.images.data(), turn.images.size(), turn.answer.c_str()});
    }
}

}  // namespace fopru_python
