#include "base/json.h"
#include "capi/handles.h"

namespace fopru {

namespace {

template <class T>
Json optional(const std::optional<T>& value) {
    return value ? Json(*value) : Json();
}

Json graphs_of(const Manifest& manifest) {
    Json::Object graphs;
    for (const auto& [name, graph] : manifest.graphs) {
        graphs.emplace_back(name, Json::Object{{"file", graph.file}, {"precision", graph.precision}});
    }
    return graphs;
}

Json decoder_of(const DecoderInfo& decoder) {
    Json::Object caches;
    for (const auto& [graph, kind] : decoder.caches) caches.emplace_back(graph, kind);
    return Json::Object{{"layers", decoder.layers},
                        {"kv_heads", decoder.kv_heads},
                        {"head_dim", decoder.head_dim},
                        {"hidden_size", decoder.hidden_size},
                        {"vocab_size", decoder.vocab_size},
                        {"max_positions", decoder.max_positions},
                        {"position_axes", decoder.position_axes},
                        {"cache_dtype", decoder.cache_dtype},
                        {"caches", std::move(caches)}};
}

Json pruning_of(const PruningInfo& pruning) {
    return Json::Object{{"strategy", pruning.strategy},
                        {"aggregation", pruning.aggregation},
                        {"layer", pruning.layer},
                        {"score_path", pruning.score_path},
                        {"position_ids", pruning.position_ids},
                        {"default_ratio", optional(pruning.default_ratio)},
                        {"default_tokens", optional(pruning.default_tokens)},
                        {"row_scope", pruning.row_scope},
                        {"newline", pruning.newline}};
}

std::string info_of(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    std::uint64_t bytes = 0;
    for (const auto& [name, file] : manifest.files) bytes += file.bytes;
    const Json info =
        Json::Object{{"path", bundle.path()},
                     {"format_version", manifest.version},
                     {"model", Json::Object{{"name", manifest.model.name},
                                            {"source", manifest.model.source},
                                            {"family", manifest.model.family},
                                            {"architecture", manifest.model.architecture}}},
                     {"layout", Json::Object{{"kind", manifest.layout->kind()},
                                             {"prefix_tokens", manifest.layout->prefix_tokens()},
                                             {"unit_tokens", optional(manifest.layout->unit_tokens())},
                                             {"image_tokens", optional(manifest.layout->image_tokens())}}},
                     {"pruning", pruning_of(manifest.pruning)},
                     {"decoder", decoder_of(manifest.decoder)},
                     {"graphs", graphs_of(manifest)},
                     {"bytes", static_cast<std::int64_t>(bytes)}};
    return info.dump(2);
}

}  // namespace

}  // namespace fopru

extern "C" {

fopru_status fopru_bundle_open(const char* path, int verify, fopru_bundle** out) {
    return fopru::guarded([&] {
        fopru::need(out, "out");
        auto bundle = fopru::Bundle::open(fopru::need_text(path, "path"), verify != FOPRU_NO_VERIFY);
        std::string info = fopru::info_of(*bundle);
        *out = std::make_unique<fopru_bundle>(fopru_bundle{std::move(bundle), std::move(info)}).release();
    });
}

void fopru_bundle_free(fopru_bundle* bundle) { const std::unique_ptr<fopru_bundle> taken(bundle); }

const char* fopru_bundle_info(const fopru_bundle* bundle) { return bundle ? bundle->info.c_str() : ""; }

}  // extern "C"
