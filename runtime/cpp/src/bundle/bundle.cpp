#include "bundle/bundle.h"

#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"
#include "base/file.h"
#include "base/python_text.h"
#include "base/sha256.h"
#include "base/utf8_check.h"
#include "bundle/manifest_check.h"

namespace fopru {

namespace {

constexpr const char* manifest_file = "bundle.json";
constexpr JsonLimits manifest_limits{std::size_t{64} << 20, 64, std::size_t{2} << 20};

void check_folder(const std::string& root) {
    bool there = false;
    try {
        there = path_exists(root);
    } catch (const FileError& error) {
        throw BundleError("the bundle " + root + " cannot be opened (" + error.what() + "): check the path");
    }
    if (!there) {
        throw BundleError("there is no bundle at " + root +
                          ": build one with `python -m export.build --output " + root + "`");
    }
    if (!is_directory(root)) {
        throw BundleError(
            root + " is a file, but a bundle is a directory: give the directory that holds bundle.json");
    }
}

std::string manifest_text(const std::string& root) {
    std::string file = join_path(root, manifest_file), why;
    try {
        std::string text = read_file(file, manifest_limits.bytes);
        std::size_t bad = first_bad_utf8(text);
        if (bad == std::string::npos) return text;
        why = "byte " + std::to_string(bad) + " is not UTF-8";
    } catch (const FileError& error) {
        if (error.number() == ENOENT) {
            throw BundleError(root +
                              " has no bundle.json, so it is not a bundle or was only half written: "
                              "build it again with `python -m export.build`");
        }
        why = error.what();
    }
    throw BundleError(file + " cannot be read (" + why + "): copy the bundle again");
}

void check_file(const std::string& root, const std::string& name, const FileInfo& info, bool verify) {
    std::string file = join_path(root, name);
    std::optional<std::uint64_t> size = file_size(file);
    if (!size) {
        throw BundleError("bundle " + root + " lacks " + name +
                          ", so it was only copied in part: copy it again");
    }
    if (info.bytes < 0 || *size != static_cast<std::uint64_t>(info.bytes)) {
        throw BundleError(file + " has " + std::to_string(*size) + " bytes, but bundle.json says " +
                          std::to_string(info.bytes) + ": copy the bundle again, it is damaged");
    }
    if (!verify) return;
    std::string hash;
    try {
        hash = sha256_of_file(file);
    } catch (const FileError& error) {
        throw BundleError(file + " cannot be read (" + error.what() + "): copy the bundle again");
    }
    if (hash != info.sha256) {
        throw BundleError(file +
                          " does not have the SHA-256 of bundle.json: copy the bundle again, it is damaged");
    }
}

}  // namespace

Bundle::Bundle(std::string path, Manifest manifest)
    : path_(std::move(path)), manifest_(std::move(manifest)) {}

std::shared_ptr<const Bundle> Bundle::open(const std::string& path, bool verify) {
    std::string root = plain_path(path);
    check_folder(root);
    Manifest manifest = read_manifest(parse_json(manifest_text(root), manifest_file, manifest_limits));
    check_tables(manifest);
    for (const std::string& name : manifest.file_names)
        check_file(root, name, manifest.files.at(name), verify);
    return std::shared_ptr<const Bundle>(new Bundle(root, std::move(manifest)));
}

std::string Bundle::file(const std::string& name) const {
    if (manifest_.files.count(name) == 0) {
        throw BundleError("bundle " + path_ + " has no " + name + ": " + rebuild_bundle);
    }
    return join_path(path_, name);
}

std::string Bundle::graph_file(const std::string& graph) const {
    auto info = manifest_.graphs.find(graph);
    if (info == manifest_.graphs.end()) {
        throw BundleError("bundle " + path_ + " has no graph " + graph + ": " + rebuild_bundle);
    }
    return join_path(path_, info->second.file);
}

std::optional<std::vector<float>> Bundle::constant(const std::string& name) const {
    auto found = manifest_.constants.find(name);
    if (found == manifest_.constants.end()) return std::nullopt;
    const ConstantInfo& info = found->second;
    std::string path = file(info.file);
    std::uint64_t size = static_cast<std::uint64_t>(manifest_.files.at(info.file).bytes);
    std::optional<std::size_t> wanted = checked_bytes(info.shape, sizeof(float));
    if (!wanted || size != *wanted) {
        throw BundleError(path + " has " + std::to_string(size) + " bytes, but bundle.json says float32 " +
                          python_repr(info.shape) + ": copy the bundle again, it is damaged");
    }
    std::string bytes;
    try {
        bytes = read_file(path, size);
    } catch (const FileError& error) {
        throw BundleError(path + " cannot be read (" + error.what() + "): copy the bundle again");
    }
    if (bytes.size() != size) {  // it changed since the bundle was opened
        throw BundleError(path + " has " + std::to_string(bytes.size()) +
                          " bytes, but bundle.json says float32 " + python_repr(info.shape) +
                          ": copy the bundle again, it is damaged");
    }
    std::vector<float> out(bytes.size() / sizeof(float));
    if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
}

}  // namespace fopru
