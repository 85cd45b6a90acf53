#include "libraries.h"

#include <algorithm>

#include "backend/backend.h"
#include "backend/ort/ort_library.h"
#include "base/error.h"
#include "base/python_text.h"
#include "base/version.h"
#include "image/image.h"

namespace fopru::cli {
namespace {

// ONNX Runtime, looked for as the backend looks for it.
struct Found {
    std::string path, version, error;  // `error` is empty where it was found
};

Found find_onnxruntime() {
    try {
        const auto library = ort::Library::load();
        return {library->path(), library->version(), ""};
    } catch (const Error& error) {
        return {"", "", error.what()};
    }
}

bool has_tensorrt() {
    const std::vector<std::string> names = built_backends();
    return std::find(names.begin(), names.end(), "tensorrt") != names.end();
}

}  // namespace

Json libraries_json() {
    const Found found = find_onnxruntime();
    Json::Array backends;
    for (const std::string& name : built_backends()) backends.emplace_back(name);
    Json::Object onnxruntime = {{"path", found.error.empty() ? Json(found.path) : Json(nullptr)},
                                {"version", found.error.empty() ? Json(found.version) : Json(nullptr)},
                                {"error", found.error.empty() ? Json(nullptr) : Json(found.error)}};
    return Json(Json::Object{{"fopru", library_version()},
                             {"backends", Json(std::move(backends))},
                             {"onnxruntime", Json(std::move(onnxruntime))},
                             {"tensorrt", has_tensorrt()},
                             {"jpeg", jpeg_decoder()}});
}

std::string libraries_text() {
    const Found found = find_onnxruntime();
    std::string text =
        "fopru           " + std::string(library_version()) + ", backends " + joined(built_backends()) + "\n";
    text +=
        "ONNX Runtime    " + (found.error.empty() ? found.version + ", " + found.path : found.error) + "\n";
    text += std::string("TensorRT        ") + (has_tensorrt() ? "built in" : "not built in") + "\n";
    return text + "JPEG            " + jpeg_decoder() + "\n";
}

}  // namespace fopru::cli
