// `fopru info`: what a bundle holds, and which libraries there are.
#include <cstdio>

#include "base/python_text.h"
#include "bundle/contract.h"
#include "commands.h"
#include "libraries.h"
#include "output.h"
#include "session.h"

namespace fopru::cli {
namespace {

Json optional_json(const std::optional<std::int64_t>& value) { return value ? Json(*value) : Json(nullptr); }

Json bytes_json(std::uint64_t bytes) { return Json(static_cast<std::int64_t>(bytes)); }

std::uint64_t bytes_of(const Manifest& manifest, const std::string& file) {
    const auto found = manifest.files.find(file);
    return found == manifest.files.end() ? 0 : found->second.bytes;
}

// The weight file of a graph; graphs that are made of one another share theirs.
std::string weights_of(const std::string& graph) {
    std::string owner = graph;
    if (graph == contract::vision_encoder_fopru) owner = contract::vision_encoder;
    if (graph == contract::decoder_portable) owner = contract::decoder;
    return "onnx/" + owner + ".onnx_data";
}

Json model_json(const ModelInfo& model) {
    return Json(Json::Object{{"name", model.name},
                             {"source", model.source},
                             {"family", model.family},
                             {"architecture", model.architecture}});
}

Json layout_json(const Layout& layout) {
    const auto grid = layout.unit_grid();
    return Json(Json::Object{{"kind", layout.kind()},
                             {"unit_tokens", optional_json(layout.unit_tokens())},
                             {"image_tokens", optional_json(layout.image_tokens())},
                             {"grid", grid ? Json(Json::Array{grid->first, grid->second}) : Json(nullptr)},
                             {"prefix_tokens", layout.prefix_tokens()},
                             {"position_axes", layout.position_axes()}});
}

Json pruning_json(const PruningInfo& pruning) {
    return Json(
        Json::Object{{"strategy", pruning.strategy},
                     {"aggregation", pruning.aggregation},
                     {"layer", pruning.layer},
                     {"score_path", pruning.score_path},
                     {"gather", pruning.gather},
                     {"position_ids", pruning.position_ids},
                     {"default_ratio", pruning.default_ratio ? Json(*pruning.default_ratio) : Json(nullptr)},
                     {"default_tokens", optional_json(pruning.default_tokens)},
                     {"row_scope", pruning.row_scope},
                     {"newline", pruning.newline}});
}

Json decoder_json(const DecoderInfo& decoder) {
    Json::Object caches;
    for (const auto& [graph, cache] : decoder.caches) caches.emplace_back(graph, cache);
    return Json(Json::Object{{"layers", decoder.layers},
                             {"kv_heads", decoder.kv_heads},
                             {"head_dim", decoder.head_dim},
                             {"hidden_size", decoder.hidden_size},
                             {"vocab_size", decoder.vocab_size},
                             {"max_positions", decoder.max_positions},
                             {"cache_dtype", decoder.cache_dtype},
                             {"cache_bytes_per_token", bytes_json(cache_bytes(decoder, 1))},
                             {"caches", Json(std::move(caches))}});
}

Json graphs_json(const Manifest& manifest) {
    Json::Object graphs;
    for (const auto& [name, graph] : manifest.graphs) {
        const std::string weights = weights_of(name);
        const bool has_weights = manifest.files.count(weights) > 0;
        graphs.emplace_back(name,
                            Json(Json::Object{{"precision", graph.precision},
                                              {"file", graph.file},
                                              {"bytes", bytes_json(bytes_of(manifest, graph.file))},
                                              {"weights", has_weights ? Json(weights) : Json(nullptr)},
                                              {"weight_bytes", bytes_json(bytes_of(manifest, weights))}}));
    }
    return Json(std::move(graphs));
}

std::uint64_t total_bytes(const Manifest& manifest) {
    std::uint64_t total = 0;
    for (const auto& [name, file] : manifest.files) total += file.bytes;
    return total;
}

Json bundle_json(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    return Json(Json::Object{{"bundle", bundle.path()},
                             {"format_version", manifest.version},
                             {"model", model_json(manifest.model)},
                             {"layout", layout_json(*manifest.layout)},
                             {"pruning", pruning_json(manifest.pruning)},
                             {"decoder", decoder_json(manifest.decoder)},
                             {"graphs", graphs_json(manifest)},
                             {"files", static_cast<std::int64_t>(manifest.files.size())},
                             {"bytes", bytes_json(total_bytes(manifest))},
                             {"libraries", libraries_json()}});
}

std::string size_text(std::uint64_t bytes) {
    constexpr double kib = 1024.0, mib = kib * kib;
    const auto count = static_cast<double>(bytes);
    char text[64];
    std::snprintf(text, sizeof text, count >= mib ? "%.1f MiB" : "%.1f KiB",
                  count / (count >= mib ? mib : kib));
    return text;
}

std::string count_text(const std::optional<std::int64_t>& count) {
    return count ? std::to_string(*count) : std::string("as many as the size of the image gives");
}

std::string default_text(const PruningInfo& pruning) {
    if (pruning.default_ratio) return "ratio " + python_float(*pruning.default_ratio);
    if (pruning.default_tokens) return "tokens " + std::to_string(*pruning.default_tokens);
    return "everything";
}

std::string weights_text(const Manifest& manifest, const std::string& graph) {
    const std::string file = weights_of(graph);
    if (manifest.files.count(file) == 0) return "";
    const bool own = file == "onnx/" + graph + ".onnx_data";
    return own ? " + weights " + size_text(bytes_of(manifest, file)) : ", weights of " + file;
}

std::string line_of(const std::string& label, const std::string& text) {
    return label + std::string(label.size() < 15 ? 16 - label.size() : 1, ' ') + text + "\n";
}

std::string bundle_text(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    const PruningInfo& pruning = manifest.pruning;
    const DecoderInfo& decoder = manifest.decoder;
    std::string text = line_of("bundle", bundle.path() + " (format " + std::to_string(manifest.version) +
                                             ", " + std::to_string(manifest.files.size()) + " files, " +
                                             size_text(total_bytes(manifest)) + ")");
    text += line_of("model", manifest.model.name + ", " + manifest.model.architecture);
    text += line_of("visual tokens", count_text(manifest.layout->image_tokens()) + " (layout " +
                                         manifest.layout->kind() + ")");
    text += line_of("pruning", pruning.strategy + " by " + pruning.aggregation + " of layer " +
                                   std::to_string(pruning.layer) + ", default " + default_text(pruning));
    text += line_of("decoder", std::to_string(decoder.layers) + " layers, " +
                                   std::to_string(decoder.max_positions) + " positions, " +
                                   size_text(cache_bytes(decoder, 1)) + " of " + decoder.cache_dtype +
                                   " cache a token");
    for (const auto& [name, graph] : manifest.graphs) {
        text +=
            line_of("graph", name + ", " + graph.precision + ", " +
                                 size_text(bytes_of(manifest, graph.file)) + weights_text(manifest, name));
    }
    return text + libraries_text();
}

struct InfoOptions {
    std::string bundle;
    bool json = false;

    Command command() {
        Command found{
            "info", "What a bundle holds, and which libraries there are. Nothing is run.", &bundle, {}};
        found.options.push_back({"--json", &json, "", "print one JSON object"});
        return found;
    }
};

}  // namespace

int info_command(const Arguments& arguments) {
    InfoOptions options;
    if (const auto help = parse(options.command(), arguments)) {
        write_out(*help);
        return code_done;
    }
    const auto bundle = Bundle::open(options.bundle, false);
    write_out(options.json ? bundle_json(*bundle).dump(2) + "\n" : bundle_text(*bundle));
    return code_done;
}

}  // namespace fopru::cli
