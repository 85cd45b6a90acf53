// `bundle.json`, field by field: docs/bundle_format.md is its prose, `runtime/manifest.py` its Python.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "layout/layout.h"

namespace fopru {

constexpr int format_version = 3;

struct PromptTemplate {
    std::string first_turn;
    std::optional<std::string> next_turn;
    std::string image;
    bool add_special_tokens = false;
    std::string generation;
    std::string past_answer = "{answer}";
    std::optional<std::string> first_text;
    std::optional<std::string> next_text;
};

struct SpecialTokens {
    std::int64_t image = 0;
    std::vector<std::int64_t> eos;
    std::optional<std::int64_t> pad;
    std::optional<std::int64_t> bos;
};

struct PruningInfo {
    std::string strategy, aggregation;
    std::int64_t layer = 0;
    std::string score_path, gather, position_ids;
    std::optional<double> default_ratio;
    std::optional<std::int64_t> default_tokens;
    std::string row_scope = "tile";
    std::string newline = "keep_all";
};

struct DecoderInfo {
    int layers = 0, kv_heads = 0, head_dim = 0, hidden_size = 0, vocab_size = 0;
    std::int64_t max_positions = 0;
    int position_axes = 1;
    std::vector<std::pair<std::string, std::string>> caches;  // decoder graph, kind of its cache; in order
    std::string cache_dtype = "float32";
};

// A dim that varies is -1, and has its name in `names`.
struct TensorSpec {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::string> names;  // of each dim; "" where it is fixed
};

struct GraphInfo {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
    std::string precision = "fp32";
};

struct ConstantInfo {
    std::string file;
    std::vector<std::int64_t> shape;
};

struct FileInfo {
    std::int64_t bytes = 0;
    std::string sha256;
};

struct ModelInfo {
    std::string name, source, family, architecture;
};

struct Manifest {
    int version = format_version;
    ModelInfo model;
    Json created_by;
    PromptTemplate prompt;
    SpecialTokens tokens;
    Preprocess preprocess;
    std::shared_ptr<const Layout> layout;
    PruningInfo pruning;
    DecoderInfo decoder;
    std::map<std::string, GraphInfo> graphs;
    std::map<std::string, FileInfo> files;
    std::vector<std::string> file_names;  // in the order of bundle.json, in which they are checked
    std::map<std::string, ConstantInfo> constants;
    Json parity;

    bool grid_input() const;  // the pruned encoder takes `grid`
};

// Throws BundleError as `Manifest.from_json` does, for all the same reasons. Formats 1 and 2 are read too.
Manifest read_manifest(const Json& json);

}  // namespace fopru
