#include "backend/ort/tensorrt_profile.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace fopru::ort {

namespace {

using Dims = std::vector<std::int64_t>;

struct Profile {
    Dims minimum, optimum, maximum;
    bool values = false;
};

// One value of the plan after the other; what is not as it should be is one error.
class Reader {
public:
    explicit Reader(const std::string& name) : name_(name) {}

    [[noreturn]] void fail(const std::string& reason) const {
        throw BackendError(name_ + " cannot be read (" + reason +
                           "): write there the object `plan` of `python -m runtime.engine BUNDLE --unpruned "
                           "--plan-only --json`");
    }
    const Json& member(const Json& object, const char* key) const {
        const Json* found = object.find(key);
        if (found == nullptr) fail(std::string("it has no ") + key);
        return *found;
    }
    const Json::Array& array(const Json& value, const char* what) const {
        if (value.array() == nullptr) fail(std::string(what) + " is no list");
        return *value.array();
    }
    std::int64_t integer(const Json& value, const char* what) const {
        if (value.integer() == nullptr || *value.integer() < 0)
            fail(std::string(what) + " is no number from 0 on");
        return *value.integer();
    }
    Dims dims(const Json& profile, const char* key) const {
        Dims all;
        for (const Json& value : array(member(profile, key), key)) all.push_back(integer(value, key));
        return all;
    }
    Profile profile(const Json& json) const {
        const bool* values = member(json, "values").boolean();
        if (values == nullptr) fail("values is neither true nor false");
        Profile made{dims(json, "minimum"), dims(json, "optimum"), dims(json, "maximum"), *values};
        const std::size_t rank = made.minimum.size();
        if (made.optimum.size() != rank || made.maximum.size() != rank)
            fail("a profile has three different ranks");
        return made;
    }

private:
    const std::string& name_;
};

// One profile that takes all that several do, tuned for the last: for a decoder, its single steps.
//
// What ONNX Runtime before September 2026 passes to TensorRT 10.11 and later as the optimum of a shape
// tensor's values is the maximum, and the other way round (microsoft/onnxruntime#32415): so both are equal.
std::vector<std::pair<std::string, Profile>> joined(const Reader& reader, const Json::Array& profiles) {
    std::vector<std::pair<std::string, Profile>> all;
    if (profiles.empty() || profiles.back().object() == nullptr) reader.fail("a graph has no profiles");
    for (const auto& [input, last] : *profiles.back().object()) {
        Profile one = reader.profile(last);
        for (const Json& each : profiles) {
            const Profile own = reader.profile(reader.member(each, input.c_str()));
            if (own.minimum.size() != one.minimum.size())
                reader.fail(input + " has profiles of different ranks");
            for (std::size_t axis = 0; axis < own.minimum.size(); ++axis) {
                one.minimum[axis] = std::min(one.minimum[axis], own.minimum[axis]);
                one.maximum[axis] = std::max(one.maximum[axis], own.maximum[axis]);
            }
        }
        if (one.values) one.optimum = one.maximum;
        all.emplace_back(input, std::move(one));
    }
    return all;
}

// "input_ids:1x7,mask:1x9"
std::string shapes(const std::vector<std::pair<std::string, Profile>>& profile, Dims Profile::* point) {
    std::string text;
    for (const auto& [input, own] : profile) {
        text += (text.empty() ? "" : ",") + input + ":";
        const Dims& dims = own.*point;
        for (std::size_t axis = 0; axis < dims.size(); ++axis) {
            text += (axis == 0 ? "" : "x") + std::to_string(dims[axis]);
        }
    }
    return text;
}

}  // namespace

ProviderOptions tensorrt_options(std::string_view plan, const std::string& name, const std::string& graph,
                                 const std::string& folder) {
    const Reader reader(name);
    Json json;
    try {
        json = parse_json(plan, name);
    } catch (const BundleError& error) {
        reader.fail(error.what());
    }
    std::string files;
    for (const Json& each : reader.array(reader.member(json, "graphs"), "graphs")) {
        const std::string* file = reader.member(each, "file").text();
        if (file == nullptr) reader.fail("a graph has no file");
        files += (files.empty() ? "" : ", ") + *file;
        if (*file != graph) continue;
        const auto profile = joined(reader, reader.array(reader.member(each, "profiles"), "profiles"));
        return {{"device_id", "0"},
                {"trt_max_workspace_size",
                 std::to_string(reader.integer(reader.member(json, "workspace"), "workspace"))},
                // Off, which makes the network strongly typed: the precision is in the graph.
                {"trt_fp16_enable", "0"},
                {"trt_engine_cache_enable", "1"},
                {"trt_engine_cache_path", folder},
                {"trt_timing_cache_enable", "1"},
                {"trt_timing_cache_path", folder},
                {"trt_profile_min_shapes", shapes(profile, &Profile::minimum)},
                {"trt_profile_opt_shapes", shapes(profile, &Profile::optimum)},
                {"trt_profile_max_shapes", shapes(profile, &Profile::maximum)}};
    }
    throw BackendError("the plan " + name + " has no " + graph + ", only " + files +
                       ": write one of this bundle, with --unpruned, to that file");
}

}  // namespace fopru::ort
