// A bundle directory that has been opened and checked.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.h"

namespace fopru {

// Immutable after `open`, so any number of threads and generators may share one.
class Bundle {
public:
    // Throws BundleError: no bundle, a newer format, a file missing or of another size; with `verify`,
    // another hash.
    static std::shared_ptr<const Bundle> open(const std::string& path, bool verify);

    const std::string& path() const { return path_; }
    const Manifest& manifest() const { return manifest_; }
    // Path of a listed file, absolute where `path()` is. Throws BundleError where the bundle does not list
    // it.
    std::string file(const std::string& name) const;
    std::string graph_file(const std::string& graph) const;
    // float32 values of a constant, none where the bundle has none of that name. BundleError: damaged.
    std::optional<std::vector<float>> constant(const std::string& name) const;

    Bundle(const Bundle&) = delete;
    Bundle& operator=(const Bundle&) = delete;

private:
    Bundle(std::string path, Manifest manifest);
    std::string path_;
    Manifest manifest_;
};

}  // namespace fopru
