#include "backend/ort/ort_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"

namespace fopru::ort {

namespace {

namespace fs = std::filesystem;

// The two functions that ONNX Runtime exports a pointer to; everything else is behind the first.
struct Base {
    const void* const* (*get_api)(std::uint32_t version);
    const char* (*version)();
};

constexpr const char* entry = "OrtGetApiBase";
constexpr const char* environment = "FOPRU_ORT_LIB";
constexpr const char* names[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr const char* way_out =
    "set FOPRU_ORT_LIB to the file, such as site-packages/onnxruntime/capi/libonnxruntime.so.* of `pip "
    "install "
    "onnxruntime`";

// The library in a folder by any version of its name, the latest name first; empty where there is none.
std::string inside(const fs::path& folder) {
    std::vector<std::string> found;
    std::error_code ignored;
    for (const fs::directory_entry& file : fs::directory_iterator(folder, ignored)) {
        if (file.path().filename().string().rfind(names[1], 0) == 0) found.push_back(file.path().string());
    }
    return found.empty() ? "" : *std::max_element(found.begin(), found.end());
}

// Folder of the file that this code was linked into.
fs::path own_folder() {
    Dl_info info{};
    const bool known =
        dladdr(reinterpret_cast<const void*>(&own_folder), &info) != 0 && info.dli_fname != nullptr;
    std::error_code ignored;
    return known ? fs::absolute(fs::path(info.dli_fname), ignored).parent_path() : fs::path();
}

std::vector<std::string> candidates() {
    const char* given = std::getenv(environment);
    if (given != nullptr && *given != '\0') {
        std::error_code ignored;
        if (!fs::is_directory(given, ignored)) return {given};
        const std::string file = inside(given);
        if (file.empty()) {
            throw BackendError(std::string("FOPRU_ORT_LIB is the folder ") + given +
                               ", which holds no libonnxruntime.so: " + way_out);
        }
        return {file};
    }
    std::vector<std::string> all;
    const fs::path folder = own_folder();
    std::error_code ignored;
    for (const char* name : names) {
        if (!folder.empty() && fs::exists(folder / name, ignored)) all.push_back((folder / name).string());
    }
    all.insert(all.end(), std::begin(names), std::end(names));
    return all;
}

// "1.31.1" -> 31; ONNX Runtime's interface has the number of its minor version.
unsigned minor_of(const std::string& version) {
    const std::size_t point = version.find('.');
    return point == std::string::npos ? 0 : static_cast<unsigned>(std::atoi(version.c_str() + point + 1));
}

std::string path_of(const void* symbol, const std::string& fallback) {
    Dl_info info{};
    return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : fallback;
}

std::shared_ptr<const Library> opened(void* handle, const std::string& file) {
    void* symbol = dlsym(handle, entry);
    const Base* (*base_of)() = nullptr;
    static_assert(sizeof(base_of) == sizeof(symbol));
    if (symbol == nullptr) {
        throw BackendError(file + " has no " + entry + ", so it is not ONNX Runtime: " + way_out);
    }
    *reinterpret_cast<void**>(&base_of) = symbol;
    const Base* base = base_of();
    const std::string version = base->version();
    // Asked for a version that it does not have, ONNX Runtime complains on stderr: so its own is looked at
    // before.
    const unsigned minor = minor_of(version);
    const void* const* table = minor >= api_version ? base->get_api(api_version) : nullptr;
    if (table == nullptr) {
        throw BackendError(file + " is ONNX Runtime " + version + ", expected 1." +
                           std::to_string(api_version) + " or later: install a newer one, and " + way_out);
    }
    const void* const* later = minor >= placement_version ? base->get_api(placement_version) : nullptr;
    const Api api = later != nullptr ? read_api(later, true) : read_api(table, false);
    return std::make_shared<Library>(api, path_of(symbol, file), version);
}

Owned<Env> environment_of(const Api& api) {
    Env* env = nullptr;
    check(api, api.create_env(log_fatal, "fopru", &env), "onnxruntime cannot start");
    Owned<Env> owned(env, api.release_env);
    // What a device runs is its owner's business. ORT_DISABLE_TELEMETRY=1 does more, from the start on, but
    // to set it is the program's: a library must not change the environment of threads that may read it.
    check(api, api.disable_telemetry(env), "onnxruntime cannot start");
    return owned;
}

}  // namespace

Library::Library(const Api& api, std::string path, std::string version)
    : api_(api), path_(std::move(path)), version_(std::move(version)), env_(environment_of(api)) {}

std::shared_ptr<const Library> Library::load() {
    std::string tried;
    for (const std::string& file : candidates()) {
        // Local, so that it cannot take the place of another copy in this process, such as Python's.
        void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle != nullptr) return opened(handle, file);
        const char* reason = dlerror();
        tried += (tried.empty() ? "" : "; ") + std::string(reason == nullptr ? file : reason);
    }
    throw BackendError("onnxruntime needs the library libonnxruntime.so, which cannot be loaded (" + tried +
                       "): " + way_out);
}

std::vector<std::string> Library::providers() const {
    char** names = nullptr;
    int count = 0;
    check(api_, api_.providers(&names, &count), "onnxruntime does not list its providers");
    std::vector<std::string> all(names, names + count);
    if (Status* status = api_.release_providers(names, count)) api_.release_status(status);
    return all;
}

}  // namespace fopru::ort
