// src/bundle for tests/test_cpp_bundle.py: values in the form in which runtime/decode.py encodes them.
#include "bundle/bundle.h"
#include "bundle/contract.h"
#include "bundle/manifest_check.h"
#include "probe.h"

using namespace fopru;

namespace {

template <class T>
Json maybe(const std::optional<T>& value) {
    return value ? Json(*value) : Json();
}

template <class Values>
Json list(const Values& values) {
    return Json(Json::Array(values.begin(), values.end()));
}

Json tensors(const std::vector<TensorSpec>& specs) {
    Json::Array out;
    for (const TensorSpec& spec : specs) {
        Json::Array dims;
        for (std::size_t axis = 0; axis < spec.shape.size(); ++axis) {
            dims.push_back(spec.names[axis].empty() ? Json(spec.shape[axis]) : Json(spec.names[axis]));
        }
        out.push_back(Json::Object{{"name", spec.name}, {"dtype", spec.dtype}, {"shape", std::move(dims)}});
    }
    return Json(std::move(out));
}

Json prompt_record(const PromptTemplate& prompt) {
    return Json::Object{{"first_turn", prompt.first_turn},
                        {"next_turn", maybe(prompt.next_turn)},
                        {"image", prompt.image},
                        {"add_special_tokens", prompt.add_special_tokens},
                        {"generation", prompt.generation},
                        {"past_answer", prompt.past_answer},
                        {"first_text", maybe(prompt.first_text)},
                        {"next_text", maybe(prompt.next_text)}};
}

Json pruning_record(const PruningInfo& pruning) {
    return Json::Object{{"strategy", pruning.strategy},
                        {"aggregation", pruning.aggregation},
                        {"layer", pruning.layer},
                        {"score_path", pruning.score_path},
                        {"gather", pruning.gather},
                        {"position_ids", pruning.position_ids},
                        {"default_ratio", maybe(pruning.default_ratio)},
                        {"default_tokens", maybe(pruning.default_tokens)},
                        {"row_scope", pruning.row_scope},
                        {"newline", pruning.newline}};
}

Json decoder_record(const DecoderInfo& info) {
    Json::Object caches;
    for (const auto& [graph, kind] : info.caches) caches.emplace_back(graph, kind);
    return Json::Object{{"layers", info.layers},
                        {"kv_heads", info.kv_heads},
                        {"head_dim", info.head_dim},
                        {"hidden_size", info.hidden_size},
                        {"vocab_size", info.vocab_size},
                        {"max_positions", info.max_positions},
                        {"position_axes", info.position_axes},
                        {"caches", std::move(caches)},
                        {"cache_dtype", info.cache_dtype}};
}

// Without `layout`, which src/layout reads and its own tests compare.
Json manifest_record(const Manifest& manifest) {
    Json::Object graphs, files, constants;
    for (const auto& [name, graph] : manifest.graphs) {
        graphs.emplace_back(name, Json::Object{{"file", graph.file},
                                               {"inputs", tensors(graph.inputs)},
                                               {"outputs", tensors(graph.outputs)},
                                               {"precision", graph.precision}});
    }
    for (const std::string& name : manifest.file_names) {
        const FileInfo& file = manifest.files.at(name);
        files.emplace_back(name, Json::Object{{"bytes", file.bytes}, {"sha256", file.sha256}});
    }
    for (const auto& [name, constant] : manifest.constants) {
        constants.emplace_back(name, Json::Object{{"file", constant.file}, {"shape", list(constant.shape)}});
    }
    const ModelInfo& model = manifest.model;
    const Preprocess& preprocess = manifest.preprocess;
    return Json::Object{{"format_version", manifest.version},
                        {"created_by", manifest.created_by},
                        {"model", Json::Object{{"name", model.name},
                                               {"source", model.source},
                                               {"family", model.family},
                                               {"architecture", model.architecture}}},
                        {"prompt", prompt_record(manifest.prompt)},
                        {"tokens", Json::Object{{"image", manifest.tokens.image},
                                                {"eos", list(manifest.tokens.eos)},
                                                {"pad", maybe(manifest.tokens.pad)},
                                                {"bos", maybe(manifest.tokens.bos)}}},
                        {"preprocess", Json::Object{{"resample", preprocess.resample},
                                                    {"rescale_factor", preprocess.rescale_factor},
                                                    {"mean", list(preprocess.mean)},
                                                    {"std", list(preprocess.std)}}},
                        {"layout", manifest.layout->kind()},
                        {"pruning", pruning_record(manifest.pruning)},
                        {"decoder", decoder_record(manifest.decoder)},
                        {"graphs", std::move(graphs)},
                        {"files", std::move(files)},
                        {"constants", std::move(constants)},
                        {"parity", manifest.parity}};
}

Json contract_record(const Manifest& manifest) {
    Json::Object out;
    for (const contract::NamedContract& wanted : contract::contracts(manifest)) {
        out.emplace_back(wanted.graph, Json::Object{{"inputs", tensors(wanted.tensors.inputs)},
                                                    {"outputs", tensors(wanted.tensors.outputs)}});
    }
    return Json(std::move(out));
}

Json answer(const std::string& op, const Json& request) {
    if (op == "manifest" || op == "tables" || op == "contract") {
        Manifest manifest = read_manifest(parse_json(text_of(request, "text"), "bundle.json"));
        if (op == "contract") return contract_record(manifest);
        if (op == "tables") check_tables(manifest);
        return manifest_record(manifest);
    }
    auto bundle = Bundle::open(text_of(request, "path"), *request.find("verify")->boolean());
    if (op == "open") return manifest_record(bundle->manifest());
    if (op == "file") return Json(bundle->file(text_of(request, "name")));
    if (op == "graph") return Json(bundle->graph_file(text_of(request, "name")));
    if (op == "constant") {
        auto values = bundle->constant(text_of(request, "name"));
        return values ? list(std::vector<double>(values->begin(), values->end())) : Json();
    }
    throw std::runtime_error("unknown op " + op);
}

}  // namespace

int main() { return run_probe(answer); }
