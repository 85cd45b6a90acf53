#include "backend/ort/ort_api.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "base/error.h"

namespace fopru::ort {

namespace {

struct Slot {
    const char* name;
    int place;
};

constexpr Slot slots[] = {
    {"GetErrorMessage", 2},
    {"CreateEnv", 3},
    {"DisableTelemetryEvents", 6},
    {"CreateSession", 7},
    {"Run", 9},
    {"CreateSessionOptions", 10},
    {"DisableMemPattern", 17},
    {"SetSessionLogSeverityLevel", 22},
    {"SetIntraOpNumThreads", 24},
    {"SessionGetInputCount", 30},
    {"SessionGetOutputCount", 31},
    {"SessionGetInputTypeInfo", 33},
    {"SessionGetOutputTypeInfo", 34},
    {"SessionGetInputName", 36},
    {"SessionGetOutputName", 37},
    {"CreateTensorWithDataAsOrtValue", 49},
    {"CastTypeInfoToTensorInfo", 55},
    {"GetTensorElementType", 60},
    {"GetDimensionsCount", 61},
    {"GetDimensions", 62},
    {"CreateMemoryInfo", 68},
    {"AllocatorFree", 76},
    {"GetAllocatorWithDefaultOptions", 78},
    {"ReleaseEnv", 92},
    {"ReleaseStatus", 93},
    {"ReleaseMemoryInfo", 94},
    {"ReleaseSession", 95},
    {"ReleaseValue", 96},
    {"ReleaseTypeInfo", 98},
    {"ReleaseSessionOptions", 100},
    {"GetAvailableProviders", 125},
    {"ReleaseAvailableProviders", 126},
    {"AddSessionConfigEntry", 130},
    {"SessionOptionsAppendExecutionProvider_TensorRT_V2", 170},
    {"CreateTensorRTProviderOptions", 171},
    {"UpdateTensorRTProviderOptions", 172},
    {"ReleaseTensorRTProviderOptions", 174},
    {"SessionOptionsAppendExecutionProvider_CUDA_V2", 204},
    {"CreateCUDAProviderOptions", 205},
    {"UpdateCUDAProviderOptions", 206},
    {"ReleaseCUDAProviderOptions", 208},
    {"Session_GetEpGraphAssignmentInfo", 407},
    {"EpAssignedSubgraph_GetEpName", 408},
    {"EpAssignedSubgraph_GetNodes", 409},
    {"EpAssignedNode_GetOperatorType", 412},
};

constexpr int most_lines = 6;  // of a message

// Takes functions out of the table by their names.
class Taker {
public:
    explicit Taker(const void* const* table) : table_(table) {}

    template <class Function>
    void operator()(Function& function, const char* name) const {
        for (const Slot& slot : slots) {
            if (std::strcmp(slot.name, name) == 0) {
                // An object pointer becomes a function pointer bit by bit, as POSIX promises of dlsym.
                static_assert(sizeof(function) == sizeof(void*));
                std::memcpy(&function, &table_[slot.place], sizeof(function));
                return;
            }
        }
        throw std::logic_error(std::string("no slot for ") + name);
    }

private:
    const void* const* table_;
};

std::string stripped(const std::string& line) {
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) return "";
    return line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
}

void take_core(const Taker& take, Api& api) {
    take(api.error_message, "GetErrorMessage");
    take(api.create_env, "CreateEnv");
    take(api.disable_telemetry, "DisableTelemetryEvents");
    take(api.create_session, "CreateSession");
    take(api.run, "Run");
    take(api.create_options, "CreateSessionOptions");
    take(api.disable_mem_pattern, "DisableMemPattern");
    take(api.set_log_severity, "SetSessionLogSeverityLevel");
    take(api.set_threads, "SetIntraOpNumThreads");
    take(api.add_config, "AddSessionConfigEntry");
    take(api.input_count, "SessionGetInputCount");
    take(api.output_count, "SessionGetOutputCount");
    take(api.input_type, "SessionGetInputTypeInfo");
    take(api.output_type, "SessionGetOutputTypeInfo");
    take(api.input_name, "SessionGetInputName");
    take(api.output_name, "SessionGetOutputName");
    take(api.default_allocator, "GetAllocatorWithDefaultOptions");
    take(api.free, "AllocatorFree");
    take(api.tensor_info, "CastTypeInfoToTensorInfo");
    take(api.element_type, "GetTensorElementType");
    take(api.rank, "GetDimensionsCount");
    take(api.dims, "GetDimensions");
    take(api.create_tensor, "CreateTensorWithDataAsOrtValue");
    take(api.create_memory_info, "CreateMemoryInfo");
    take(api.providers, "GetAvailableProviders");
    take(api.release_providers, "ReleaseAvailableProviders");
    take(api.release_env, "ReleaseEnv");
    take(api.release_status, "ReleaseStatus");
    take(api.release_session, "ReleaseSession");
    take(api.release_options, "ReleaseSessionOptions");
    take(api.release_value, "ReleaseValue");
    take(api.release_memory_info, "ReleaseMemoryInfo");
    take(api.release_type, "ReleaseTypeInfo");
}

}  // namespace

Api read_api(const void* const* table, bool placement) {
    const Taker take(table);
    Api api;
    take_core(take, api);
    take(api.create_cuda, "CreateCUDAProviderOptions");
    take(api.update_cuda, "UpdateCUDAProviderOptions");
    take(api.append_cuda, "SessionOptionsAppendExecutionProvider_CUDA_V2");
    take(api.release_cuda, "ReleaseCUDAProviderOptions");
    take(api.create_tensorrt, "CreateTensorRTProviderOptions");
    take(api.update_tensorrt, "UpdateTensorRTProviderOptions");
    take(api.append_tensorrt, "SessionOptionsAppendExecutionProvider_TensorRT_V2");
    take(api.release_tensorrt, "ReleaseTensorRTProviderOptions");
    if (placement) {
        take(api.placement, "Session_GetEpGraphAssignmentInfo");
        take(api.subgraph_provider, "EpAssignedSubgraph_GetEpName");
        take(api.subgraph_nodes, "EpAssignedSubgraph_GetNodes");
        take(api.node_operator, "EpAssignedNode_GetOperatorType");
    }
    return api;
}

std::vector<std::pair<const char*, int>> api_slots() {
    std::vector<std::pair<const char*, int>> all;
    for (const Slot& slot : slots) all.emplace_back(slot.name, slot.place);
    return all;
}

std::string message_of(const Api& api, Status* status) {
    const Owned<Status> owned(status, api.release_status);
    const char* given = api.error_message(status);
    const std::string all = given == nullptr ? "" : given;
    std::string text;
    int lines = 0;
    for (std::size_t begin = 0; begin <= all.size() && lines < most_lines;) {
        const std::size_t end = std::min(all.find('\n', begin), all.size());
        const std::string line = stripped(all.substr(begin, end - begin));
        begin = end + 1;
        if (line.empty() || line.rfind("Please fix", 0) == 0) continue;
        text += (lines++ == 0 ? "" : " ") + line;
    }
    return text.empty() ? "it does not say why" : text;
}

void check(const Api& api, Status* status, const char* what) {
    if (status != nullptr) throw BackendError(std::string(what) + ": " + message_of(api, status));
}

}  // namespace fopru::ort
