#include "capi/handles.h"

namespace fopru {

namespace {

// Index checked, so that a wrong one gives nothing and no crash.
template <class T>
const T* item(const std::vector<T>& items, std::size_t index) {
    return index < items.size() ? &items[index] : nullptr;
}

OnText teller(fopru_on_text on_text, void* user) {
    if (on_text == nullptr) return {};
    return
        [on_text, user](const std::string& piece) { return on_text(piece.data(), piece.size(), user) == 0; };
}

}  // namespace

}  // namespace fopru

extern "C" {

fopru_status fopru_generate(fopru_generator* generator, const fopru_request* request, fopru_on_text on_text,
                            void* user, fopru_result** out) {
    return fopru::guarded([&] {
        fopru::need(out, "out");
        const fopru::Claim claim(generator);
        claim.worker().steps_left = -1;
        const auto given = fopru::given_request(claim.worker(), request, nullptr);
        auto made = std::make_unique<fopru_result>();
        made->result =
            claim.generator().generate(given.request, given.pictures, fopru::teller(on_text, user));
        claim.worker().warning = claim.generator().warning();
        for (const fopru_image* image : given.images) {
            if (!image->told.exchange(true)) made->result.timings.preprocess += image->seconds;
        }
        made->json = to_json(made->result).dump();
        *out = made.release();
    });
}

fopru_status fopru_warmup(fopru_generator* generator, const fopru_request* request) {
    return fopru::guarded([&] {
        const fopru::Claim claim(generator);
        claim.worker().steps_left = -1;
        const auto given = fopru::given_request(claim.worker(), request, nullptr);
        claim.generator().warmup(given.request, given.pictures);
        claim.worker().warning = claim.generator().warning();
    });
}

void fopru_result_free(fopru_result* result) { const std::unique_ptr<fopru_result> taken(result); }

const char* fopru_result_text(const fopru_result* result) {
    return result ? result->result.text.c_str() : "";
}

size_t fopru_result_text_length(const fopru_result* result) {
    return result ? result->result.text.size() : 0;
}

const int64_t* fopru_result_token_ids(const fopru_result* result, size_t* count) {
    if (count != nullptr) *count = result ? result->result.token_ids.size() : 0;
    return result ? result->result.token_ids.data() : nullptr;
}

const char* fopru_result_finish_reason(const fopru_result* result) {
    return result ? result->result.finish_reason.c_str() : "";
}

int fopru_result_pruned(const fopru_result* result) { return result && result->result.pruned ? 1 : 0; }

const char* fopru_result_reason(const fopru_result* result) {
    return result && result->result.reason ? result->result.reason->c_str() : nullptr;
}

size_t fopru_result_images(const fopru_result* result) {
    return result ? result->result.visual_tokens_after.size() : 0;
}

int64_t fopru_result_tokens_before(const fopru_result* result, size_t image) {
    const int64_t* count = result ? fopru::item(result->result.visual_tokens_before, image) : nullptr;
    return count ? *count : 0;
}

int64_t fopru_result_tokens_after(const fopru_result* result, size_t image) {
    const int64_t* count = result ? fopru::item(result->result.visual_tokens_after, image) : nullptr;
    return count ? *count : 0;
}

const int64_t* fopru_result_kept(const fopru_result* result, size_t image, size_t* count) {
    const auto* kept = result ? fopru::item(result->result.kept_indices, image) : nullptr;
    if (count != nullptr) *count = kept ? kept->size() : 0;
    return kept ? kept->data() : nullptr;
}

fopru_timings fopru_result_timings(const fopru_result* result) {
    if (result == nullptr) return {};
    const fopru::Timings& own = result->result.timings;
    return {own.load, own.preprocess, own.vision, own.embed, own.prefill, own.decode};
}

const char* fopru_result_json(const fopru_result* result) { return result ? result->json.c_str() : ""; }

}  // extern "C"
