// Stages of a bundle on ONNX Runtime, for tests/test_cpp_ort.py: one JSON command a line in, one JSON object
// a line out. Tensors come from and go to files of plain numbers.
//
//     probe_ort BUNDLE THREADS [BACKEND]
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include "backend/backend.h"
#include "backend/ort/ort_api.h"
#include "backend/ort/tensorrt_profile.h"
#include "base/error.h"
#include "bundle/bundle.h"
#include "bundle/contract.h"
#include "vision/vision.h"

namespace {

using namespace fopru;
using Ids = std::vector<std::int64_t>;

std::string text_of(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    std::ostringstream text;
    text << stream.rdbuf();
    if (!stream) throw BackendError("no file " + file);
    return text.str();
}

std::vector<float> floats_of(const std::string& file) {
    const std::string bytes = text_of(file);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
}

void write(const std::string& file, const std::vector<float>& values) {
    std::ofstream(file, std::ios::binary)
        .write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
}

const Json& member(const Json& json, const char* key) {
    const Json* found = json.find(key);
    if (found == nullptr) throw RequestError(std::string("the command has no ") + key);
    return *found;
}

std::int64_t integer(const Json& json, const char* key) { return *member(json, key).integer(); }

std::string text(const Json& json, const char* key) { return *member(json, key).text(); }

Ids ids_of(const Json& json) {
    Ids ids;
    for (const Json& value : *json.array()) ids.push_back(*value.integer());
    return ids;
}

Json list(const Ids& ids) {
    Json::Array array;
    for (const std::int64_t id : ids) array.emplace_back(id);
    return array;
}

class Probe {
public:
    Probe(const std::string& path, const std::string& backend, int threads)
        : bundle_(Bundle::open(path, false)) {
        BackendOptions options;
        options.threads = threads;
        options.cache_dtype = bundle_->manifest().decoder.cache_dtype;
        backend_ = make_backend(backend, options);
        vision_ = std::make_unique<VisionEncoder>(
            *backend_, [this](const std::string& graph) -> Session& { return session(graph); },
            bundle_->manifest(), bundle_->constant("image_newline"));
    }

    Json answer(const Json& command) {
        const std::string what = text(command, "do");
        if (what == "info") return info();
        if (what == "encode") return encode(command);
        if (what == "prepare") return prepare(command);
        if (what == "prefill") return prefill(command);
        if (what == "steps") return steps(command);
        throw RequestError("no command " + what);
    }

private:
    Session& session(const std::string& graph) {
        auto& opened = sessions_[graph];
        if (opened == nullptr) opened = backend_->open(graph, bundle_->graph_file(graph));
        return *opened;
    }

    Json info() {
        Json::Array kinds;
        for (const std::string& kind : backend_->cache_kinds()) kinds.emplace_back(kind);
        return Json::Object{{"description", backend_->description()}, {"kinds", std::move(kinds)}};
    }

    std::vector<float> numbers(const Rows& rows) {
        std::vector<float> values(static_cast<std::size_t>(rows.count * rows.width));
        backend_->download(values.data(),
                           {rows.buffer.get(), Dtype::float32, {rows.count, rows.width}, rows.offset});
        return values;
    }

    // {"images": [{"height", "width", "shape", "pixels": file}], "counts" or none, "selector", "seed", "out":
    // file}
    Json encode(const Json& command) {
        std::vector<PreparedImage> prepared;
        for (const Json& image : *member(command, "images").array()) {
            PreparedImage own;
            own.plan = bundle_->manifest().layout->plan(static_cast<int>(integer(image, "height")),
                                                        static_cast<int>(integer(image, "width")));
            own.pixels = {ids_of(member(image, "shape")), floats_of(text(image, "pixels"))};
            prepared.push_back(std::move(own));
        }
        std::vector<const PreparedImage*> images;
        for (const PreparedImage& image : prepared) images.push_back(&image);
        std::vector<EncodedImage> encoded;
        const Json* counts = command.find("counts");
        if (counts == nullptr) {
            encoded = vision_->encode_unpruned(images);
        } else {
            Selection selection;
            for (const Json& own : *counts->array()) selection.counts.push_back(ids_of(own));
            selection.selector = text(command, "selector");
            selection.seed = static_cast<std::uint64_t>(integer(command, "seed"));
            encoded = vision_->encode(images, selection);
        }
        Json::Array answers;
        std::vector<float> features;
        for (const EncodedImage& image : encoded) {
            const std::vector<float> own = numbers(image.features);
            features.insert(features.end(), own.begin(), own.end());
            Json::Array kept, scores;
            for (const Ids& unit : image.kept) kept.push_back(list(unit));
            for (const auto& unit : image.scores.value_or(std::vector<std::vector<float>>())) {
                Json::Array values;
                for (const float score : unit) values.emplace_back(static_cast<double>(score));
                scores.emplace_back(std::move(values));
            }
            answers.push_back(Json::Object{{"rows", image.features.count},
                                           {"kept", std::move(kept)},
                                           {"kept_indices", list(image.kept_indices())},
                                           {"scores", image.scores ? Json(std::move(scores)) : Json()},
                                           {"places", list(image.assembly.places)}});
        }
        write(text(command, "out"), features);
        return Json::Object{{"images", std::move(answers)}};
    }

    // {"graph", "kind", "capacity", "positions": [axes][L], "next", "keep"}
    Json prepare(const Json& command) {
        const std::string graph = text(command, "graph");
        auto& run = runs_[graph];
        if (run == nullptr) {
            run = std::make_unique<DecoderRun>(
                *backend_,
                DecoderGraphs{&session(contract::embed_tokens), &session(graph), text(command, "kind")},
                bundle_->manifest().decoder);
        }
        Positions positions;
        positions.axes = static_cast<int>(member(command, "positions").array()->size());
        for (const Json& axis : *member(command, "positions").array()) {
            for (const std::int64_t id : ids_of(axis)) positions.ids.push_back(id);
        }
        positions.next = integer(command, "next");
        run->prepare(integer(command, "capacity"), positions, integer(command, "keep"));
        return Json::Object{{"length", run->length()},
                            {"capacity", run->capacity()},
                            {"allocated", static_cast<std::int64_t>(run->allocated_bytes())}};
    }

    // {"graph", "embeds": file, "out": file}
    Json prefill(const Json& command) {
        const std::int64_t width = bundle_->manifest().decoder.hidden_size;
        const std::vector<float> values = floats_of(text(command, "embeds"));
        Rows rows;
        rows.width = width;
        rows.count = static_cast<std::int64_t>(values.size()) / width;
        rows.buffer = backend_->allocate(values.size() * sizeof(float));
        backend_->upload({rows.buffer.get(), Dtype::float32, {rows.count, width}, 0}, values.data());
        const float* logits = runs_.at(text(command, "graph"))->prefill(rows);
        write(text(command, "out"), {logits, logits + bundle_->manifest().decoder.vocab_size});
        return Json::Object{};
    }

    // {"graph", "tokens", "out": file}
    Json steps(const Json& command) {
        std::vector<float> all;
        for (const std::int64_t token : ids_of(member(command, "tokens"))) {
            const float* logits = runs_.at(text(command, "graph"))->step(token);
            all.insert(all.end(), logits, logits + bundle_->manifest().decoder.vocab_size);
        }
        write(text(command, "out"), all);
        return Json::Object{{"length", runs_.at(text(command, "graph"))->length()}};
    }

    std::shared_ptr<const Bundle> bundle_;
    std::unique_ptr<Backend> backend_;
    std::map<std::string, std::unique_ptr<Session>> sessions_;
    std::unique_ptr<VisionEncoder> vision_;
    std::map<std::string, std::unique_ptr<DecoderRun>> runs_;
};

EngineLimits limits_of(const Json& json) {
    EngineLimits limits;
    limits.max_images = static_cast<int>(integer(json, "max_images"));
    limits.max_prompt = static_cast<int>(integer(json, "max_prompt"));
    limits.max_new_tokens = static_cast<int>(integer(json, "max_new_tokens"));
    limits.max_image_tokens = static_cast<int>(integer(json, "max_image_tokens"));
    member(json, "max_ratio").number(limits.max_ratio);
    double ratio = 0.0;
    if (member(json, "ratio").number(ratio)) limits.ratio = ratio;
    limits.unpruned = *member(json, "unpruned").boolean();
    return limits;
}

// Options of every graph of a plan, as of a bundle in /b.
Json options_of(const EnginePlan& plan, const std::string& folder) {
    Json::Object all;
    for (const GraphPlan& graph : plan.graphs) {
        Json::Object own;
        for (const auto& [key, value] : ort::tensorrt_options(plan, "/b", "/b/" + graph.file, folder)) {
            own.emplace_back(key, value);
        }
        all.emplace_back(graph.file, std::move(own));
    }
    return all;
}

// Without a bundle: {"do": "slots"}, {"do": "backends"}, {"do": "backend", "name", "threads"},
// {"do": "options", "root", "file", "folder"}, {"do": "plan", "manifest": file, "limits", "workspace"}.
Json alone(const Json& command) {
    const std::string what = text(command, "do");
    Json::Object answer;
    if (what == "slots") {
        for (const auto& [name, slot] : ort::api_slots()) answer.emplace_back(name, slot);
    } else if (what == "backends") {
        Json::Array names;
        for (const std::string& name : built_backends()) names.emplace_back(name);
        answer.emplace_back("names", std::move(names));
    } else if (what == "backend") {
        BackendOptions options;
        options.threads = static_cast<int>(integer(command, "threads"));
        answer.emplace_back("description", make_backend(text(command, "name"), options)->description());
    } else if (what == "plan") {
        const Manifest manifest =
            read_manifest(parse_json(text_of(text(command, "manifest")), "bundle.json"));
        return options_of(
            plan_engines(manifest, limits_of(member(command, "limits")), integer(command, "workspace")),
            "/e");
    } else {
        const std::string root = text(command, "root");
        for (const auto& [key, value] : ort::tensorrt_options(
                 ort::provider_plan(root), root, text(command, "file"), text(command, "folder"))) {
            answer.emplace_back(key, value);
        }
    }
    return answer;
}

}  // namespace

int main(int count, char** arguments) {
    std::unique_ptr<Probe> probe;
    std::string line;
    while (std::getline(std::cin, line)) {
        Json answer;
        try {
            if (count > 1 && probe == nullptr) {
                probe = std::make_unique<Probe>(arguments[1], count > 3 ? arguments[3] : "onnxruntime",
                                                count > 2 ? std::stoi(arguments[2]) : 0);
            }
            const Json command = parse_json(line, "the command");
            answer = probe == nullptr ? alone(command) : probe->answer(command);
        } catch (const Error& error) {
            answer = Json::Object{{"error", error.what()}, {"kind", static_cast<int>(error.kind())}};
        }
        std::cout << answer.dump() << std::endl;
    }
    return 0;
}
