#include "bundle/manifest.h"

#include <array>
#include <climits>

#include "base/error.h"
#include "bundle/contract.h"
#include "bundle/decode.h"
#include "bundle/manifest_check.h"
#include "bundle/upgrade.h"

namespace fopru {

namespace {

const char* python_type(const Json& json) {
    double number = 0.0;
    if (json.is_null()) return "NoneType";
    if (json.boolean() != nullptr) return "bool";
    if (json.integer() != nullptr) return "int";
    if (json.number(number)) return "float";
    if (json.text() != nullptr) return "str";
    return json.array() != nullptr ? "list" : "dict";
}

}  // namespace

// Beside the readers of decode.h, which find these by the type of their last argument.
static void read(const Json& value, const std::string& where, ModelInfo& out) {
    read_record(value, where,
                {required_field("name", out.name), required_field("source", out.source),
                 required_field("family", out.family), required_field("architecture", out.architecture)});
}

static void read(const Json& value, const std::string& where, PromptTemplate& out) {
    read_record(
        value, where,
        {required_field("first_turn", out.first_turn), required_field("next_turn", out.next_turn),
         required_field("image", out.image), required_field("add_special_tokens", out.add_special_tokens),
         optional_field("generation", out.generation), optional_field("past_answer", out.past_answer),
         optional_field("first_text", out.first_text), optional_field("next_text", out.next_text)});
    check(out);
}

static void read(const Json& value, const std::string& where, SpecialTokens& out) {
    read_record(value, where,
                {required_field("image", out.image), required_field("eos", out.eos),
                 required_field("pad", out.pad), required_field("bos", out.bos)});
    check(out);
}

static void read(const Json& value, const std::string& where, Preprocess& out) {
    std::int64_t resample = 0;
    read_record(value, where,
                {required_field("resample", resample), required_field("rescale_factor", out.rescale_factor),
                 required_field("mean", out.mean), required_field("std", out.std)});
    // Beyond 32 bits the code is still named as it was written.
    if (resample < INT_MIN || resample > INT_MAX) {
        throw BundleError("preprocess.resample is " + std::to_string(resample) +
                          ", expected PIL's code 0..5 (3 is bicubic): " + rebuild_bundle);
    }
    out.resample = static_cast<int>(resample);
    check(out);
}

static void read(const Json& value, const std::string& where, PruningInfo& out) {
    read_record(value, where,
                {required_field("strategy", out.strategy), required_field("aggregation", out.aggregation),
                 required_field("layer", out.layer), required_field("score_path", out.score_path),
                 required_field("gather", out.gather), required_field("position_ids", out.position_ids),
                 required_field("default_ratio", out.default_ratio),
                 required_field("default_tokens", out.default_tokens),
                 optional_field("row_scope", out.row_scope), optional_field("newline", out.newline)});
    check(out);
}

static void read(const Json& value, const std::string& where, DecoderInfo& out) {
    struct Count {
        const char* name;
        int* out;
        std::int64_t value = 1;
    };
    // In the order of `DecoderInfo` in Python, which is that of its checks.
    std::array<Count, 7> counts{{{"layers", &out.layers},
                                 {"kv_heads", &out.kv_heads},
                                 {"head_dim", &out.head_dim},
                                 {"hidden_size", &out.hidden_size},
                                 {"vocab_size", &out.vocab_size},
                                 {"max_positions", nullptr},
                                 {"position_axes", &out.position_axes}}};
    std::vector<Field> fields;
    for (Count& count : counts) fields.push_back(required_field(count.name, count.value));
    fields.back().required = false;
    out.caches = {{contract::decoder, contract::concat}};
    fields.push_back({"caches", false, [&out](const Json& caches, const std::string& place) {
                          out.caches.clear();
                          for (const auto& [graph, kind] : object_of(caches, place)) {
                              out.caches.emplace_back(graph, "");
                              read(kind, place + "." + graph, out.caches.back().second);
                          }
                      }});
    fields.push_back(optional_field("cache_dtype", out.cache_dtype));
    read_record(value, where, fields);
    for (const Count& count : counts) {
        if (count.value < 1) {
            throw BundleError(std::string("decoder.") + count.name + " is " + std::to_string(count.value) +
                              ", expected at least 1: " + rebuild_bundle);
        }
        if (count.out != nullptr && count.value > INT_MAX) {
            throw BundleError(std::string("decoder.") + count.name + " is " + std::to_string(count.value) +
                              ", expected at most " + std::to_string(INT_MAX) + ": " + rebuild_bundle);
        }
        if (count.out != nullptr) *count.out = static_cast<int>(count.value);
    }
    out.max_positions = counts[5].value;
    check(out);
}

static void read(const Json& value, const std::string& where, TensorSpec& out) {
    auto read_shape = [&out](const Json& dims, const std::string& place) {
        const Json::Array& items = list_of(dims, place);
        for (std::size_t axis = 0; axis < items.size(); ++axis) {
            const std::int64_t* fixed = items[axis].integer();
            const std::string* name = items[axis].text();
            if (fixed == nullptr && name == nullptr) {
                wrong_type(items[axis], place + "[" + std::to_string(axis) + "]", "an integer or a string");
            }
            out.shape.push_back(fixed != nullptr ? *fixed : -1);
            out.names.push_back(name != nullptr ? *name : "");
        }
    };
    read_record(
        value, where,
        {required_field("name", out.name), required_field("dtype", out.dtype), {"shape", true, read_shape}});
}

static void read(const Json& value, const std::string& where, GraphInfo& out) {
    read_record(value, where,
                {required_field("file", out.file), required_field("inputs", out.inputs),
                 required_field("outputs", out.outputs), optional_field("precision", out.precision)});
    check(out);
}

static void read(const Json& value, const std::string& where, ConstantInfo& out) {
    read_record(value, where, {required_field("file", out.file), required_field("shape", out.shape)});
}

static void read(const Json& value, const std::string& where, FileInfo& out) {
    read_record(value, where, {required_field("bytes", out.bytes), required_field("sha256", out.sha256)});
}

namespace {

// Shown by `fopru info`, so its values are of two types alone.
void check_created_by(const Json& value, const std::string& where) {
    for (const auto& [key, entry] : object_of(value, where)) {
        if (entry.text() == nullptr && entry.integer() == nullptr) {
            wrong_type(entry, where + "." + key, "a string or an integer");
        }
    }
}

Manifest read_current(const Json& json) {
    Manifest out;
    read_record(json, "bundle.json",
                {required_field("format_version", out.version),
                 {"created_by", true,
                  [&](const Json& value, const std::string& where) {
                      check_created_by(value, where);
                      out.created_by = value;
                  }},
                 required_field("model", out.model),
                 required_field("prompt", out.prompt),
                 required_field("tokens", out.tokens),
                 required_field("preprocess", out.preprocess),
                 {"layout", true,
                  [&](const Json& value, const std::string& where) {
                      object_of(value, where);
                      out.layout = make_layout(value);
                  }},
                 required_field("pruning", out.pruning),
                 required_field("decoder", out.decoder),
                 required_field("graphs", out.graphs),
                 {"files", true,
                  [&](const Json& value, const std::string& where) {
                      read(value, where, out.files);
                      for (const auto& file : *value.object()) out.file_names.push_back(file.first);
                  }},
                 optional_field("constants", out.constants),
                 {"parity", false, [&](const Json& value, const std::string& where) {
                      if (!value.is_null()) object_of(value, where);
                      out.parity = value;
                  }}});
    check(out, json);
    return out;
}

}  // namespace

bool Manifest::grid_input() const { return pruning.strategy == "row" && !layout->unit_grid(); }

Manifest read_manifest(const Json& json) {
    if (json.object() == nullptr) {
        throw BundleError(std::string("bundle.json holds a ") + python_type(json) +
                          ", expected an object: " + rebuild_bundle);
    }
    // The version is looked at first: a newer format may have keys that mean nothing here.
    std::int64_t version = 0;
    const Json* number = json.find("format_version");
    read(number != nullptr ? *number : Json(), "bundle.json: format_version", version);
    if (version > format_version) {
        throw BundleError("the bundle has format " + std::to_string(version) +
                          ", but this runtime reads up to " + std::to_string(format_version) +
                          ": upgrade the runtime, or build the bundle with an exporter of this version");
    }
    if (version < 1) {
        throw BundleError("bundle.json: format_version is " + std::to_string(version) + ", expected 1.." +
                          std::to_string(format_version) + ": " + rebuild_bundle);
    }
    return read_current(upgraded(json, version));
}

}  // namespace fopru
