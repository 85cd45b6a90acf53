#include <cstring>

#include "capi/handles.h"

namespace fopru {

namespace {

fopru_request default_request() {
    static_assert(sizeof(void*) != 8 || sizeof(fopru_request) == 160,
                  "a field was added: FOPRU_ABI_VERSION grows");
    const Request own;
    fopru_request request{};
    request.size = sizeof request;
    request.selector = "graph";
    request.max_new_tokens = own.max_new_tokens;
    request.top_p = own.sampling.top_p;
    request.repetition_penalty = own.sampling.repetition_penalty;
    return request;
}

// The images of a request in order, of which `encoded` has the first.
class Gathered {
public:
    Gathered(const Worker& worker, const fopru_encoded* encoded, GivenRequest& given)
        : worker_(worker), given_(given) {
        if (encoded == nullptr) return;
        const bool same = encoded->worker.get() == &worker;
        if (encoded->worker->bundle != worker.bundle) {
            throw RequestError(
                "the visual tokens are of another bundle: encode the images with this generator");
        }
        if (!same && (encoded->worker->on_device || worker.on_device)) {
            throw RequestError(
                "the visual tokens are where another generator has them, and one of the two computes on a "
                "device: encode the images with this one");
        }
        given.pictures.encoded = encoded->tokens;
    }

    void add(const fopru_image* const* images, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i, ++seen_) {
            if (seen_ < given_.pictures.encoded.size()) continue;
            need(images, "images");
            add(need(images[i], "an image of the request"));
        }
    }

private:
    void add(const fopru_image& image) {
        if (image.bundle != worker_.bundle) {
            throw RequestError("an image was prepared for another bundle: prepare it with this generator");
        }
        given_.pictures.prepared.push_back(&image.image);
        given_.images.push_back(&image);
    }

    const Worker& worker_;
    GivenRequest& given_;
    std::size_t seen_ = 0;
};

Sampling sampling_of(const fopru_request& given) {
    return {given.temperature, given.top_k, given.top_p, given.min_p, given.repetition_penalty, given.seed};
}

}  // namespace

GivenRequest given_request(const Worker& worker, const fopru_request* request, const fopru_encoded* encoded,
                           bool whole) {
    fopru_request full = default_request();
    check_size(need(request, "request").size, sizeof full, "fopru_request");
    std::memcpy(&full, request, request->size);
    GivenRequest made;
    Request& own = made.request;
    if (whole) own.prompt = need_text(full.prompt, "prompt");
    own.images = full.image_count;
    if (full.ratio != 0.0) own.ratio = full.ratio;
    if (full.tokens != 0) own.tokens = full.tokens;
    if (full.selector != nullptr) own.selector = full.selector;
    own.max_new_tokens = full.max_new_tokens;
    own.sampling = sampling_of(full);
    own.ignore_eos = full.ignore_eos != 0;
    for (std::size_t i = 0; whole && i < full.stop_count; ++i) {
        need(full.stop, "stop");
        own.stop.push_back(need_text(full.stop[i], "a string of stop"));
    }
    Gathered images(worker, encoded != nullptr ? encoded : full.encoded, made);
    for (std::size_t i = 0; i < full.history_count; ++i) {
        const fopru_turn& turn = (&need(full.history, "history"))[i];
        own.history.emplace_back();
        own.history.back().images = turn.image_count;
        if (whole) {
            own.history.back().prompt = need_text(turn.prompt, "the prompt of a turn of history");
            own.history.back().answer = need_text(turn.answer, "the answer of a turn of history");
        }
        images.add(turn.images, turn.image_count);
    }
    images.add(full.images, full.image_count);
    return made;
}

}  // namespace fopru

extern "C" void fopru_request_init(fopru_request* request, size_t size) {
    if (request == nullptr) return;
    fopru_request full = fopru::default_request();
    full.size = size;
    std::memset(request, 0, size);
    std::memcpy(request, &full, size < sizeof full ? size : sizeof full);
}
