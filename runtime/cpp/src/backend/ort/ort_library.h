// ONNX Runtime's shared library, found and loaded while the program runs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/ort/ort_api.h"

namespace fopru::ort {

// Immutable, so any number of threads may share one. Sessions keep it alive. The library itself is never
// unloaded: its threads and its allocator outlive their users.
class Library {
public:
    // $FOPRU_ORT_LIB (a file, or a folder that holds one), else beside this code, else where the system
    // looks. BackendError: none can be loaded; the message lists what was tried.
    static std::shared_ptr<const Library> load();
    // `path` and `version` are for messages.
    Library(const Api& api, std::string path, std::string version);
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    const Api& api() const { return api_; }
    const Env* env() const { return env_.get(); }
    const std::string& path() const { return path_; }
    const std::string& version() const { return version_; }
    std::vector<std::string> providers() const;

private:
    Api api_;
    std::string path_, version_;
    Owned<Env> env_;
};

}  // namespace fopru::ort
