#include "backend/tensorrt/engine_files.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "bundle/decode.h"

namespace fopru {

namespace {

constexpr const char* engines_folder = "engines";
constexpr const char* record_name = "engines.json";
constexpr std::int64_t record_format = 1;
constexpr std::uint64_t most_record = std::uint64_t{16} << 20;

struct EngineFile {
    std::string file, onnx;
    std::int64_t bytes = 0;
};

struct Record {
    EngineIdentity identity;
    std::vector<std::pair<std::string, EngineFile>> engines;
    Json limits;  // of the plan, for the command that builds one more
    std::optional<std::int64_t> workspace;
};

// What a shell takes as one word.
std::string quoted(const std::string& word) {
    const std::string plain = "@%+=:,./-_";
    const bool safe = !word.empty() && std::all_of(word.begin(), word.end(), [&](unsigned char own) {
        return own < 128 && (std::isalnum(own) || plain.find(static_cast<char>(own)) != std::string::npos);
    });
    if (safe) return word;
    std::string text = "'";
    for (const char own : word) text += own == '\'' ? std::string("'\"'\"'") : std::string(1, own);
    return text + "'";
}

// The command that builds these engines and one more: other limits would make another plan.
std::string build_command(const std::string& bundle, const Record& record, bool unpruned) {
    struct Default {
        const char* name;
        const char* flag;
        Json value;
    };
    const Default defaults[] = {
        {"max_images", "--max-images", 4},           {"max_prompt", "--max-prompt", 512},
        {"max_new_tokens", "--max-new-tokens", 256}, {"ratio", "--ratio", nullptr},
        {"max_ratio", "--max-ratio", 1.0},           {"max_image_tokens", "--max-image-tokens", 1280}};
    std::string command = "python -m runtime.engine " + quoted(bundle);
    for (const Default& own : defaults) {
        const Json* value = record.limits.find(own.name);
        if (value == nullptr || value->is_null()) continue;
        double wanted = 0, usual = -1;
        if (!value->number(wanted)) continue;
        if (own.value.number(usual) && wanted == usual) continue;
        command += std::string(" ") + own.flag + " " + value->dump();
    }
    if (record.workspace) command += " --workspace " + std::to_string(*record.workspace >> 20) + "MiB";
    const Json* own = record.limits.find("unpruned");
    const bool built = own != nullptr && own->boolean() != nullptr && *own->boolean();
    return unpruned || built ? command + " --unpruned" : command;
}

EngineFile read_engine(const Json& value, const std::string& where) {
    EngineFile file;
    read_record(value, where,
                {required_field("file", file.file), required_field("bytes", file.bytes),
                 required_field("onnx", file.onnx)});
    // A name alone: the record of a bundle from elsewhere must not lead out of its folder.
    if (file.file.empty() || file.file == "." || file.file == ".." ||
        file.file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
        throw BundleError(where + ".file is \"" + file.file +
                          "\", expected the name of a file in the same folder");
    }
    return file;
}

EngineIdentity read_identity(const Json& value, const std::string& where) {
    EngineIdentity identity;
    read_record(value, where,
                {required_field("gpu", identity.gpu), required_field("sm", identity.sm),
                 required_field("tensorrt", identity.tensorrt), required_field("jetpack", identity.jetpack)});
    return identity;
}

Record read_record_file(const std::string& path, const std::string& run) {
    try {
        const Json data = parse_json(read_file(path, most_record), path);
        const Json absent;
        const auto part = [&](const Json& object, const char* key) -> const Json& {
            const Json* found = object.find(key);
            return found == nullptr ? absent : *found;
        };
        const Json& format = part(data, "format");
        if (format.integer() == nullptr || *format.integer() != record_format) {
            const std::string got = format.is_null() ? "None" : format.dump();
            throw EngineError(path + " has format " + got + ", expected " + std::to_string(record_format) +
                              ": " + run);
        }
        Record record;
        for (const auto& [graph, file] : object_of(part(data, "engines"), "engines")) {
            record.engines.emplace_back(graph, read_engine(file, "engines." + graph));
        }
        record.identity = read_identity(part(data, "identity"), "identity");
        const Json& plan = part(data, "plan");
        record.limits = part(plan, "limits");
        if (const std::int64_t* workspace = part(plan, "workspace").integer()) record.workspace = *workspace;
        return record;
    } catch (const FileError& error) {
        throw EngineError(path + " cannot be read (" + error.what() + "): " + run);
    } catch (const BundleError& error) {
        throw EngineError(path + " cannot be read (" + error.what() + "): " + run);
    }
}

std::string others(const std::string& root, const std::string& own) {
    std::vector<std::string> found;
    std::error_code failed;
    for (const auto& entry : std::filesystem::directory_iterator(root, failed)) {
        const std::string name = entry.path().filename().string();
        if (name == own || name[0] == '.' || !file_size(join_path(entry.path().string(), record_name)))
            continue;
        found.push_back(name);
    }
    std::sort(found.begin(), found.end());
    std::string names;
    for (const std::string& name : found) names += (names.empty() ? "" : ", ") + name;
    return names.empty() ? "" : " (it has some for " + names + ")";
}

std::string stem_of(const std::string& file) { return std::filesystem::path(file).stem().string(); }

void check_engine(const Bundle& bundle, const std::string& folder, const Record& record,
                  const std::string& run) {
    for (const auto& [graph, file] : record.engines) {
        const std::string path = join_path(folder, file.file);
        if (bundle.manifest().graphs.count(graph) == 0 || file.onnx != graph_hash(bundle.manifest(), graph)) {
            throw EngineError("the bundle's " + graph + " has changed since " + path +
                              " was built from it: " + run);
        }
        const std::optional<std::uint64_t> size = file_size(path);
        if (!size || file.bytes < 0 || *size != static_cast<std::uint64_t>(file.bytes)) {
            throw EngineError(path + " is absent or has another size than " + record_name + " says: " + run);
        }
    }
}

}  // namespace

std::string graph_hash(const Manifest& manifest, const std::string& graph) {
    const std::string& file = manifest.graphs.at(graph).file;
    const std::string stem = stem_of(file),
                      parent = std::filesystem::path(file).parent_path().generic_string();
    // Beside the ONNX file, the data file that it shares with the graph it was made of.
    const std::string suffix = stem.compare(0, graph.size(), graph) == 0 ? stem.substr(graph.size()) : stem;
    const std::string owner = graph == "vision_encoder_fopru"     ? "vision_encoder"
                              : graph == "decoder_model_portable" ? "decoder_model_merged"
                                                                  : graph;
    const std::string data = (parent.empty() ? "." : parent) + "/" + owner + suffix + ".onnx_data";
    Sha256 digest;
    const auto add = [&](const std::string& name) {
        const auto found = manifest.files.find(name);
        digest.update(name + " " + (found == manifest.files.end() ? "" : found->second.sha256) + "\n");
    };
    add(file);
    for (const auto& entry : manifest.files) {
        if (entry.first.compare(0, data.size(), data) == 0) add(entry.first);
    }
    return digest.hex();
}

std::string find_engine(const Bundle& bundle, const std::string& graph, const EngineIdentity& identity,
                        const std::string& folder) {
    const std::string root = folder.empty() ? join_path(bundle.path(), engines_folder) : plain_path(folder);
    const bool direct = !folder.empty() && file_size(join_path(root, record_name)).has_value();
    const std::string own = direct ? root : join_path(root, identity.tag());
    const std::string run = "run `python -m runtime.engine " + bundle.path() + "`";
    const std::string path = join_path(own, record_name);
    if (!file_size(path)) {
        throw EngineError((folder.empty() ? bundle.path() : root) + " has no engines for " + identity.text() +
                          others(root, identity.tag()) + ": " + run);
    }
    const Record record = read_record_file(path, run);
    if (!(record.identity == identity)) {
        throw EngineError(own + " holds engines for " + record.identity.text() + ", but this is " +
                          identity.text() + ", and an engine runs where it was built only: " + run);
    }
    check_engine(bundle, own, record, run);
    std::string names;
    for (const auto& [name, file] : record.engines) {
        if (name == graph) return join_path(own, file.file);
        names += (names.empty() ? "" : ", ") + name;
    }
    throw EngineError(own + " has no engine of " + graph + ", only of " + names + ": run `" +
                      build_command(bundle.path(), record, graph == "vision_encoder") + "`");
}

std::string find_engine_of_file(const std::string& file, const EngineIdentity& identity,
                                const std::string& folder) {
    const std::filesystem::path root = std::filesystem::path(file).parent_path().parent_path();
    const std::shared_ptr<const Bundle> bundle = Bundle::open(root.empty() ? "." : root.string(), false);
    std::string files;
    for (const auto& [name, info] : bundle->manifest().graphs) {
        if (plain_path(join_path(bundle->path(), info.file)) == plain_path(file)) {
            return find_engine(*bundle, name, identity, folder);
        }
        files += (files.empty() ? "" : ", ") + info.file;
    }
    throw EngineError(file + " is no graph of the bundle " + bundle->path() + ": give one of " + files);
}

}  // namespace fopru
