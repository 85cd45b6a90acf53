#include "backend/ort/tensorrt_profile.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/python_text.h"
#include "bundle/bundle.h"

namespace fopru::ort {

namespace {

using Dims = std::vector<std::int64_t>;

constexpr std::int64_t workspace = std::int64_t{2} << 30;     // bytes, unless the file says otherwise
constexpr std::uint64_t most_bytes = std::uint64_t{1} << 24;  // of a plan: 1000 layers make 0.5 MB

std::string plan_file() { return std::string(engines_folder) + "/plan.json"; }

[[noreturn]] void cannot_be_read(const std::string& file, const std::string& reason) {
    throw BackendError(file + " cannot be read (" + reason +
                       "): write a plan there, or remove it for the default one");
}

Json json_of(const std::string& file) {
    try {
        return parse_json(read_file(file, most_bytes), file);
    } catch (const FileError& error) {
        cannot_be_read(file, error.what());
    } catch (const BundleError& error) {
        const std::string text = error.what();
        cannot_be_read(file, text.substr(0, text.rfind(": ")));
    }
}

[[noreturn]] void not_alike(const GraphPlan& plan, const std::string& input) {
    throw EngineError("the plan of " + plan.file + " has profiles that are not alike" +
                      (input.empty() ? "" : " in " + input) +
                      ": build the engines again with `python -m runtime.engine`");
}

const InputProfile& profile_of(const GraphPlan& plan, const EngineProfile& profile, const std::string& input,
                               std::size_t rank) {
    const auto found =
        std::find_if(profile.begin(), profile.end(), [&](const auto& own) { return own.first == input; });
    if (found == profile.end() || found->second.minimum.size() != rank) not_alike(plan, input);
    return found->second;
}

// One profile that takes all that several do, tuned for the last: for a decoder, its single steps.
//
// What ONNX Runtime before September 2026 passes to TensorRT 10.11 and later as the optimum of a shape
// tensor's values is the maximum, and the other way round (microsoft/onnxruntime#32415): so both are equal.
EngineProfile joined_profile(const GraphPlan& plan) {
    if (plan.profiles.empty()) not_alike(plan, "");
    EngineProfile all = plan.profiles.back();
    for (auto& [input, one] : all) {
        const std::size_t rank = one.minimum.size();
        for (const EngineProfile& each : plan.profiles) {
            const InputProfile& own = profile_of(plan, each, input, rank);
            for (std::size_t axis = 0; axis < rank; ++axis) {
                one.minimum[axis] = std::min(one.minimum[axis], own.minimum[axis]);
                one.maximum[axis] = std::max(one.maximum[axis], own.maximum[axis]);
            }
        }
        if (one.values) one.optimum = one.maximum;
    }
    return all;
}

// "input_ids:1x7,mask:1x9"
std::string shapes(const EngineProfile& profile, Dims InputProfile::* point) {
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

const GraphPlan& planned(const EnginePlan& plan, const std::string& root, const std::string& file) {
    std::vector<std::string> files;
    for (const GraphPlan& each : plan.graphs) {
        if (plain_path(join_path(plain_path(root), each.file)) == plain_path(file)) return each;
        files.push_back(each.file);
    }
    const std::string path = plain_path(file);
    throw BackendError("the plan of " + plain_path(root) + " has no " + path.substr(path.rfind('/') + 1) +
                       ", only " + joined(files) + ": write one of this bundle, with --unpruned, to " +
                       plan_file() + ", or remove that file");
}

}  // namespace

EnginePlan provider_plan(const std::string& root) {
    const std::string file = join_path(plain_path(root), plan_file());
    if (file_size(file)) return read_engine_plan(json_of(file), file);
    EngineLimits limits;
    limits.unpruned = true;
    return plan_engines(Bundle::open(root, false)->manifest(), limits, workspace);
}

ProviderOptions tensorrt_options(const EnginePlan& plan, const std::string& root, const std::string& file,
                                 const std::string& folder) {
    const EngineProfile profile = joined_profile(planned(plan, root, file));
    return {{"device_id", "0"},
            {"trt_max_workspace_size", std::to_string(plan.workspace)},
            // Off, which makes the network strongly typed: the precision is in the graph.
            {"trt_fp16_enable", "0"},
            {"trt_engine_cache_enable", "1"},
            {"trt_engine_cache_path", folder},
            {"trt_timing_cache_enable", "1"},
            {"trt_timing_cache_path", folder},
            {"trt_profile_min_shapes", shapes(profile, &InputProfile::minimum)},
            {"trt_profile_opt_shapes", shapes(profile, &InputProfile::optimum)},
            {"trt_profile_max_shapes", shapes(profile, &InputProfile::maximum)}};
}

}  // namespace fopru::ort
