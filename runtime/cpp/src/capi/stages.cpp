#include <cstring>
#include <optional>

#include "capi/handles.h"
#include "generate/answer.h"

namespace fopru {

namespace {

// What a request needs up to its pruned prompt.
class Begun {
public:
    Begun(const Claim& claim, const fopru_request* request, const fopru_encoded* encoded)
        : given_(given_request(claim.worker(), request, encoded)),
          run_(claim.generator(), given_.request, given_.pictures) {
        run_.plan();
        run_.tokenize();
        run_.encode();
    }
    AnswerRun& run() { return run_; }
    const Request& request() const { return given_.request; }

private:
    GivenRequest given_;  // before `run_`, which refers to it
    AnswerRun run_;
};

void prefill(const Claim& claim, Begun& begun, const float** logits) {
    Generator& generator = claim.generator();
    const Prompt prompt = begun.run().prompt();
    const Rows embeds = begun.run().embed(prompt);
    DecoderRun& decoder = generator.decoder_run(generator.decoder_graphs().front());
    try {
        decoder.prepare(begun.run().capacity(), prompt.positions);
        *logits = decoder.prefill(embeds);
    } catch (...) {
        generator.drop_run();
        throw;
    }
    claim.worker().steps_left = begun.request().max_new_tokens - 1;
}

void step(const Claim& claim, std::int64_t token, const float** logits) {
    Worker& worker = claim.worker();
    const std::int64_t vocabulary = worker.bundle->manifest().decoder.vocab_size;
    if (worker.steps_left < 0)
        throw RequestError("there is no prompt to go on from: call fopru_prefill first");
    if (token < 0 || token >= vocabulary) {
        throw RequestError("token is " + std::to_string(token) + ", expected 0.." +
                           std::to_string(vocabulary - 1));
    }
    if (worker.steps_left == 0) {
        throw RequestError("the request has no room for another token: prefill with a larger max_new_tokens");
    }
    Generator& generator = claim.generator();
    const std::int64_t left = worker.steps_left - 1;
    worker.steps_left = -1;  // unless this one succeeds
    try {
        *logits = generator.decoder_run(generator.decoder_graphs().front()).step(token);
    } catch (...) {
        generator.drop_run();
        throw;
    }
    worker.steps_left = left;
}

}  // namespace

}  // namespace fopru

extern "C" {

fopru_status fopru_encode(fopru_generator* generator, const fopru_request* request, fopru_encoded** out) {
    return fopru::guarded([&] {
        fopru::need(out, "out");
        const fopru::Claim claim(generator);
        const auto given = fopru::given_request(claim.worker(), request, nullptr, false);
        auto made = std::make_unique<fopru_encoded>();
        made->worker = generator->worker;
        made->tokens = claim.generator().encode_all(given.request, given.pictures);
        for (const auto& tokens : made->tokens) made->kept.push_back(tokens->image.kept_indices());
        *out = made.release();
    });
}

void fopru_encoded_free(fopru_encoded* encoded) { const std::unique_ptr<fopru_encoded> taken(encoded); }

size_t fopru_encoded_images(const fopru_encoded* encoded) { return encoded ? encoded->kept.size() : 0; }

fopru_status fopru_encoded_features(const fopru_encoded* encoded, float* out, int64_t* rows, int64_t* width) {
    return fopru::guarded([&] {
        const fopru_encoded& own = fopru::need(encoded, "encoded");
        int64_t count = 0;
        for (const auto& tokens : own.tokens) count += tokens->image.features.count;
        if (rows != nullptr) *rows = count;
        if (width != nullptr) *width = own.worker->bundle->manifest().decoder.hidden_size;
        if (out == nullptr) return;
        fopru::Backend& backend = own.worker->generator.backend();
        // On the host they never change, whatever the generator is doing.
        const fopru_generator generator{own.worker};
        std::optional<fopru::Claim> claim;
        if (own.worker->on_device) claim.emplace(&generator);
        for (const auto& tokens : own.tokens) {
            const fopru::Rows& part = tokens->image.features;
            backend.download(
                out, {part.buffer.get(), fopru::Dtype::float32, {part.count, part.width}, part.offset});
            out += part.count * part.width;
        }
    });
}

const int64_t* fopru_encoded_kept(const fopru_encoded* encoded, size_t image, size_t* count) {
    const bool known = encoded != nullptr && image < encoded->kept.size();
    if (count != nullptr) *count = known ? encoded->kept[image].size() : 0;
    return known ? encoded->kept[image].data() : nullptr;
}

fopru_status fopru_prompt_ids(fopru_generator* generator, const fopru_request* request,
                              const fopru_encoded* encoded, int64_t* out, size_t* count) {
    return fopru::guarded([&] {
        fopru::need(count, "count");
        const fopru::Claim claim(generator);
        fopru::give(fopru::Begun(claim, request, encoded).run().prompt().ids, out, *count);
    });
}

fopru_status fopru_tokenize(fopru_generator* generator, const char* text, int64_t* out, size_t* count) {
    return fopru::guarded([&] {
        fopru::need(count, "count");
        const auto& tokenizer = fopru::need(generator, "generator").worker->generator.tokenizer();
        fopru::give(tokenizer.encode(fopru::need_text(text, "text"), false), out, *count);
    });
}

fopru_status fopru_detokenize(fopru_generator* generator, const int64_t* ids, size_t count, char* out,
                              size_t* length) {
    return fopru::guarded([&] {
        fopru::need(length, "length");
        if (count > 0) fopru::need(ids, "ids");
        const auto& tokenizer = fopru::need(generator, "generator").worker->generator.tokenizer();
        const std::string text = tokenizer.decode(ids, count);
        if (out != nullptr && *length > text.size()) std::memcpy(out, text.c_str(), text.size() + 1);
        *length = text.size();
    });
}

fopru_status fopru_prefill(fopru_generator* generator, const fopru_request* request,
                           const fopru_encoded* encoded, const float** logits, int64_t* vocabulary) {
    return fopru::guarded([&] {
        fopru::need(logits, "logits");
        const fopru::Claim claim(generator);
        claim.worker().steps_left = -1;
        fopru::Begun begun(claim, request, encoded);
        fopru::prefill(claim, begun, logits);
        if (vocabulary != nullptr) *vocabulary = claim.worker().bundle->manifest().decoder.vocab_size;
    });
}

fopru_status fopru_step(fopru_generator* generator, int64_t token, const float** logits) {
    return fopru::guarded([&] {
        fopru::need(logits, "logits");
        const fopru::Claim claim(generator);
        fopru::step(claim, token, logits);
    });
}

}  // extern "C"
