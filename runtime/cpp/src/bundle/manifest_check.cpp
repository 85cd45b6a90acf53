#include "bundle/manifest_check.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/python_text.h"
#include "base/words.h"
#include "bundle/contract.h"

namespace fopru {

namespace {

constexpr const char* change_template = "change the chat template and build the bundle again";
constexpr const char* image_newline = "image_newline";

using Names = std::vector<std::string>;

void one_of(const std::string& name, const std::string& value, const Names& allowed) {
    if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
    throw BundleError(name + " is \"" + value + "\", expected one of " + joined(allowed) + ": " +
                      rebuild_bundle);
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void check_slot(const std::string& name, const std::string& text, const std::string& slot) {
    if (count_of(text, slot) == 1) return;
    throw BundleError("prompt." + name + " is " + python_repr(text) + ", which must hold " + slot +
                      " exactly once: " + change_template);
}

// A listed path is relative, forward-slashed, and stays inside the bundle.
void check_inside(const std::string& name) {
    bool inside =
        !name.empty() && name[0] != '/' && name.find('\\') == std::string::npos && plain_path(name) == name;
    for (std::size_t at = 0; inside && at <= name.size();) {
        std::size_t end = std::min(name.find('/', at), name.size());
        inside = name.compare(at, end - at, "..") != 0;
        at = end + 1;
    }
    if (inside) return;
    throw BundleError("files lists \"" + name +
                      "\", which is not a plain path inside the bundle: do not use it, or " + rebuild_bundle);
}

void check_graph_names(const Manifest& manifest) {
    std::set<std::string> expected{contract::vision_encoder, contract::vision_encoder_fopru,
                                   contract::embed_tokens};
    for (const auto& cache : manifest.decoder.caches) expected.insert(cache.first);
    std::set<std::string> found;
    for (const auto& graph : manifest.graphs) found.insert(graph.first);
    if (found == expected) return;
    throw BundleError("graphs is " + python_repr(Names(found.begin(), found.end())) + ", expected " +
                      python_repr(Names(expected.begin(), expected.end())) + ": " + rebuild_bundle);
}

void check_listed(const Manifest& manifest, const std::string& kind, const std::string& name,
                  const std::string& file) {
    if (manifest.files.count(file) > 0) return;
    throw BundleError(kind + "." + name + ".file is \"" + file +
                      "\", which files does not list: " + rebuild_bundle);
}

void check_newline(const Manifest& manifest) {
    auto vector = manifest.constants.find(image_newline);
    if (vector == manifest.constants.end()) {
        if (!manifest.layout->has_newlines()) return;
        throw BundleError(std::string("constants lacks ") + image_newline + ", which the layout " +
                          manifest.layout->kind() + " needs: " + rebuild_bundle);
    }
    std::int64_t width = manifest.decoder.hidden_size;
    if (vector->second.shape == std::vector<std::int64_t>{width}) return;
    throw BundleError(std::string("constants.") + image_newline + ".shape is " +
                      python_repr(vector->second.shape) + ", expected [" + std::to_string(width) +
                      "], decoder.hidden_size: " + rebuild_bundle);
}

void check_layout(const Manifest& manifest) {
    const Layout& layout = *manifest.layout;
    const PruningInfo& pruning = manifest.pruning;
    if (pruning.strategy == "row" && !layout.has_grid()) {
        throw BundleError(
            std::string("pruning.strategy is \"row\", which needs a grid of tokens, but layout.grid is "
                        "null: ") +
            rebuild_bundle);
    }
    std::optional<std::int64_t> total = layout.image_tokens();
    if (pruning.default_tokens && total && *pruning.default_tokens > *total) {
        throw BundleError("pruning.default_tokens is " + std::to_string(*pruning.default_tokens) +
                          ", but an image has " + std::to_string(*total) + " tokens: " + rebuild_bundle);
    }
    if (layout.position_axes() != manifest.decoder.position_axes) {
        throw BundleError("decoder.position_axes is " + std::to_string(manifest.decoder.position_axes) +
                          ", but the layout " + layout.kind() + " has " +
                          std::to_string(layout.position_axes()) + ": " + rebuild_bundle);
    }
    if (layout.position_axes() > 1 && pruning.position_ids != "original") {
        throw BundleError(
            "pruning.position_ids is \"" + pruning.position_ids +
            "\", but positions of time, height and width must be \"original\": " + rebuild_bundle);
    }
    check_newline(manifest);
}

}  // namespace

void check(const PromptTemplate& prompt) {
    if (count_of(prompt.past_answer, "{answer}") != 1) {
        throw BundleError("prompt.past_answer is " + python_repr(prompt.past_answer) +
                          ", which must hold {answer} exactly once: " + rebuild_bundle);
    }
    using Turn = std::pair<const char*, const std::string*>;
    std::vector<Turn> turns{{"first_turn", &prompt.first_turn}}, plain;
    if (prompt.next_turn) turns.emplace_back("next_turn", &*prompt.next_turn);
    if (prompt.first_text) plain.emplace_back("first_text", &*prompt.first_text);
    if (prompt.next_text) plain.emplace_back("next_text", &*prompt.next_text);
    std::vector<Turn> all = turns;
    all.insert(all.end(), plain.begin(), plain.end());
    for (const Turn& turn : all) {
        if (ends_with(*turn.second, prompt.generation)) continue;
        throw BundleError("prompt.generation is " + python_repr(prompt.generation) +
                          ", which must end every turn, but one is " + python_repr(*turn.second) + ": " +
                          rebuild_bundle);
    }
    for (const Turn& turn : turns) {
        check_slot(turn.first, *turn.second, "{images}");
        check_slot(turn.first, *turn.second, "{prompt}");
    }
    for (const Turn& turn : plain) check_slot(turn.first, *turn.second, "{prompt}");
}

void check(const SpecialTokens& tokens) {
    if (tokens.image < 0) {
        throw BundleError("tokens.image is " + std::to_string(tokens.image) +
                          ", expected a token id: " + rebuild_bundle);
    }
    if (tokens.eos.empty() || *std::min_element(tokens.eos.begin(), tokens.eos.end()) < 0) {
        throw BundleError("tokens.eos is " + python_repr(tokens.eos) +
                          ", expected at least one token id: " + rebuild_bundle);
    }
}

void check(const Preprocess& preprocess) {
    if (preprocess.resample < 0 || preprocess.resample > 5) {
        throw BundleError("preprocess.resample is " + std::to_string(preprocess.resample) +
                          ", expected PIL's code 0..5 (3 is bicubic): " + rebuild_bundle);
    }
    if (*std::min_element(preprocess.std.begin(), preprocess.std.end()) <= 0.0) {
        Json::Array values(preprocess.std.begin(), preprocess.std.end());
        throw BundleError("preprocess.std is " + python_repr(Json(std::move(values))) +
                          ", expected more than 0: " + rebuild_bundle);
    }
    if (preprocess.rescale_factor <= 0.0) {
        throw BundleError("preprocess.rescale_factor is " + python_float(preprocess.rescale_factor) +
                          ", expected more than 0: " + rebuild_bundle);
    }
}

void check(const PruningInfo& pruning) {
    one_of("pruning.strategy", pruning.strategy, {"rank", "row"});
    one_of("pruning.aggregation", pruning.aggregation, {"col_mean", "col_mean_patch", "cls"});
    one_of("pruning.score_path", pruning.score_path, {"one_pass", "side_branch", "cls_row", "chunked"});
    one_of("pruning.gather", pruning.gather, {"early", "late"});
    one_of("pruning.position_ids", pruning.position_ids, {"renumber", "original"});
    one_of("pruning.row_scope", pruning.row_scope, {"tile", "stitched"});
    one_of("pruning.newline", pruning.newline, {"keep_all", "keep_nonempty", "drop"});
    if (pruning.row_scope == "stitched" && pruning.strategy != "row") {
        throw BundleError("pruning.row_scope is \"stitched\", which is for strategy \"row\", but that is \"" +
                          pruning.strategy + "\": " + rebuild_bundle);
    }
    if (pruning.default_ratio && pruning.default_tokens) {
        throw BundleError(std::string("pruning has both default_ratio and default_tokens, drop one: ") +
                          rebuild_bundle);
    }
    if (pruning.default_ratio && !(*pruning.default_ratio > 0.0 && *pruning.default_ratio <= 1.0)) {
        throw BundleError("pruning.default_ratio is " + python_float(*pruning.default_ratio) +
                          ", expected a number in (0, 1]: " + rebuild_bundle);
    }
    if (pruning.default_tokens && *pruning.default_tokens < 1) {
        throw BundleError("pruning.default_tokens is " + std::to_string(*pruning.default_tokens) +
                          ", expected 1 or more: " + rebuild_bundle);
    }
}

void check(const DecoderInfo& decoder) {
    one_of("decoder.cache_dtype", decoder.cache_dtype, {"float32", "float16", "bfloat16"});
    const Names decoders{contract::decoder, contract::decoder_portable};
    if (decoder.caches.empty()) {
        throw BundleError("decoder.caches is empty, expected one of " + joined(decoders) + ": " +
                          rebuild_bundle);
    }
    for (const auto& [graph, kind] : decoder.caches) {
        one_of("a graph of decoder.caches", graph, decoders);
        one_of("decoder.caches." + graph, kind, {contract::shared, contract::append, contract::concat});
    }
}

void check(const GraphInfo& graph) {
    one_of("graphs.precision", graph.precision, {"fp32", "fp16", "bf16", "int8", "int4", "w8a8", "fp8"});
}

void check(const Manifest& manifest, const Json& json) {
    check_graph_names(manifest);
    for (const std::string& name : manifest.file_names) check_inside(name);
    for (const auto& graph : *json.find("graphs")->object()) {
        check_listed(manifest, "graphs", graph.first, manifest.graphs.at(graph.first).file);
    }
    if (const Json* constants = json.find("constants")) {
        for (const auto& constant : *constants->object()) {
            check_listed(manifest, "constants", constant.first, manifest.constants.at(constant.first).file);
        }
    }
    check_layout(manifest);
}

}  // namespace fopru
