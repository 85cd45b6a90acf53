#include <cstring>

#include "capi/handles.h"

namespace fopru {

Claim::Claim(const fopru_generator* generator) : worker_(need(generator, "generator").worker) {
    if (worker_->busy.exchange(true)) {
        throw RequestError(
            "the generator is at work: call it from one thread at a time, and not from its text callback");
    }
}

Claim::~Claim() { worker_->busy = false; }

namespace {

fopru_options default_options() {
    static_assert(sizeof(void*) != 8 || sizeof(fopru_options) == 48,
                  "a field was added: FOPRU_ABI_VERSION grows");
    const GeneratorOptions own;
    return {sizeof(fopru_options), "onnxruntime", own.threads, nullptr, own.reuse_features, own.reuse_prefix};
}

GeneratorOptions options_of(const fopru_options* given) {
    fopru_options full = default_options();
    if (given != nullptr) {
        check_size(given->size, sizeof full, "fopru_options");
        std::memcpy(&full, given, given->size);
    }
    if (full.threads < 0) {
        throw RequestError("threads is " + std::to_string(full.threads) +
                           ", expected a positive number, or 0 for the backend's choice");
    }
    GeneratorOptions options;
    if (full.backend != nullptr) options.backend = full.backend;
    options.threads = full.threads;
    if (full.engines != nullptr) options.engines = full.engines;
    options.reuse_features = full.reuse_features;
    options.reuse_prefix = full.reuse_prefix != 0;
    return options;
}

}  // namespace

}  // namespace fopru

extern "C" {

void fopru_options_init(fopru_options* options, size_t size) {
    if (options == nullptr) return;
    fopru_options full = fopru::default_options();
    full.size = size;
    std::memset(options, 0, size);
    std::memcpy(options, &full, size < sizeof full ? size : sizeof full);
}

fopru_status fopru_generator_create(fopru_bundle* bundle, const fopru_options* options,
                                    fopru_generator** out) {
    return fopru::guarded([&] {
        fopru::need(out, "out");
        const auto& own = fopru::need(bundle, "bundle").bundle;
        auto worker = std::make_shared<fopru::Worker>(own, fopru::options_of(options));
        *out = std::make_unique<fopru_generator>(fopru_generator{std::move(worker)}).release();
    });
}

void fopru_generator_free(fopru_generator* generator) {
    const std::unique_ptr<fopru_generator> taken(generator);
}

const char* fopru_generator_device(fopru_generator* generator) {
    return generator ? generator->worker->device.c_str() : "";
}

const char* fopru_generator_warning(fopru_generator* generator) {
    return generator ? generator->worker->warning.c_str() : "";
}

fopru_status fopru_generator_forget(fopru_generator* generator) {
    return fopru::guarded([&] {
        const fopru::Claim claim(generator);
        claim.worker().steps_left = -1;
        claim.generator().forget();
    });
}

fopru_status fopru_generator_release(fopru_generator* generator, const char* graph) {
    return fopru::guarded([&] {
        const std::string name = fopru::need_text(graph, "graph");
        const fopru::Claim claim(generator);
        claim.worker().steps_left = -1;
        claim.generator().release(name);
    });
}

void fopru_cancel(fopru_generator* generator) {
    if (generator != nullptr) generator->worker->generator.cancel();
}

}  // extern "C"
