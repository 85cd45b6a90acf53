// The part of ONNX Runtime's C interface that is used, declared here so that its headers are not needed to
// build.
//
// `OrtApi` is a struct of function pointers to which every version only appends, so a function is known by
// its slot (the table in ort_api.cpp). A test compares the slots with a real header where one is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace fopru::ort {

// What ONNX Runtime owns; these are its Ort... types.
struct Status;
struct Env;
struct SessionHandle;
struct SessionOptions;
struct RunOptions;
struct Value;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;
struct TensorInfo;
struct CudaOptions;
struct TensorrtOptions;
struct Subgraph;
struct Node;

// Its enums, by their numbers.
constexpr int log_fatal = 4;
constexpr int arena_allocator = 1;
constexpr int device_allocator = 0;
constexpr int default_memory = 0;
constexpr int element_float = 1, element_int64 = 7, element_bool = 9, element_float16 = 10,
              element_bfloat16 = 16;

// The versions of the interface that are asked for: the least that has everything used, and the first that
// says which provider runs which node.
constexpr std::uint32_t api_version = 14;
constexpr std::uint32_t placement_version = 24;

// Functions return null, or a status to be released. The last four are null before `placement_version`.
struct Api {
    const char* (*error_message)(const Status*) = nullptr;
    Status* (*create_env)(int level, const char* id, Env**) = nullptr;
    Status* (*disable_telemetry)(const Env*) = nullptr;
    Status* (*create_session)(const Env*, const char* path, const SessionOptions*, SessionHandle**) = nullptr;
    Status* (*run)(SessionHandle*, const RunOptions*, const char* const* inputs, const Value* const*,
                   std::size_t, const char* const* outputs, std::size_t, Value**) = nullptr;
    Status* (*create_options)(SessionOptions**) = nullptr;
    Status* (*disable_mem_pattern)(SessionOptions*) = nullptr;
    Status* (*set_log_severity)(SessionOptions*, int) = nullptr;
    Status* (*set_threads)(SessionOptions*, int) = nullptr;
    Status* (*add_config)(SessionOptions*, const char* key, const char* value) = nullptr;
    Status* (*input_count)(const SessionHandle*, std::size_t*) = nullptr;
    Status* (*output_count)(const SessionHandle*, std::size_t*) = nullptr;
    Status* (*input_type)(const SessionHandle*, std::size_t, TypeInfo**) = nullptr;
    Status* (*output_type)(const SessionHandle*, std::size_t, TypeInfo**) = nullptr;
    Status* (*input_name)(const SessionHandle*, std::size_t, Allocator*, char**) = nullptr;
    Status* (*output_name)(const SessionHandle*, std::size_t, Allocator*, char**) = nullptr;
    Status* (*default_allocator)(Allocator**) = nullptr;
    Status* (*free)(Allocator*, void*) = nullptr;
    Status* (*tensor_info)(const TypeInfo*, const TensorInfo**) = nullptr;
    Status* (*element_type)(const TensorInfo*, int*) = nullptr;
    Status* (*rank)(const TensorInfo*, std::size_t*) = nullptr;
    Status* (*dims)(const TensorInfo*, std::int64_t*, std::size_t) = nullptr;
    Status* (*create_tensor)(const MemoryInfo*, void*, std::size_t bytes, const std::int64_t*, std::size_t,
                             int, Value**) = nullptr;
    Status* (*create_memory_info)(const char*, int allocator, int id, int memory, MemoryInfo**) = nullptr;
    Status* (*providers)(char***, int*) = nullptr;
    Status* (*release_providers)(char**, int) = nullptr;
    void (*release_env)(Env*) = nullptr;
    void (*release_status)(Status*) = nullptr;
    void (*release_session)(SessionHandle*) = nullptr;
    void (*release_options)(SessionOptions*) = nullptr;
    void (*release_value)(Value*) = nullptr;
    void (*release_memory_info)(MemoryInfo*) = nullptr;
    void (*release_type)(TypeInfo*) = nullptr;

    Status* (*create_cuda)(CudaOptions**) = nullptr;
    Status* (*update_cuda)(CudaOptions*, const char* const* keys, const char* const* values,
                           std::size_t) = nullptr;
    Status* (*append_cuda)(SessionOptions*, const CudaOptions*) = nullptr;
    void (*release_cuda)(CudaOptions*) = nullptr;
    Status* (*create_tensorrt)(TensorrtOptions**) = nullptr;
    Status* (*update_tensorrt)(TensorrtOptions*, const char* const*, const char* const*,
                               std::size_t) = nullptr;
    Status* (*append_tensorrt)(SessionOptions*, const TensorrtOptions*) = nullptr;
    void (*release_tensorrt)(TensorrtOptions*) = nullptr;

    Status* (*placement)(const SessionHandle*, const Subgraph* const**, std::size_t*) = nullptr;
    Status* (*subgraph_provider)(const Subgraph*, const char**) = nullptr;
    Status* (*subgraph_nodes)(const Subgraph*, const Node* const**, std::size_t*) = nullptr;
    Status* (*node_operator)(const Node*, const char**) = nullptr;
};

// From the table of a library; `placement` is whether it is new enough for the last four.
Api read_api(const void* const* table, bool placement);
// Names as in ONNX Runtime's header, and slots.
std::vector<std::pair<const char*, int>> api_slots();

// The message of a status in one line, which is released. Where it counts dimensions, the numbers stand in
// later lines.
std::string message_of(const Api& api, Status* status);
// Throws BackendError "<what>: <message>" where there is a status.
void check(const Api& api, Status* status, const char* what);

// A handle and the function that lets it go.
template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

}  // namespace fopru::ort
