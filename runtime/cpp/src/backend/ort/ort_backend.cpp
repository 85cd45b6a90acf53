#include "backend/ort/ort_backend.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "backend/ort/ort_session.h"
#include "backend/registry.h"
#include "base/error.h"

namespace fopru::ort {

namespace {

constexpr const char* cpu_provider = "CPUExecutionProvider";

// How long an idle thread looks for work before it sleeps: longer than the gaps between two operators.
constexpr const char* spin_microseconds = "1000";

// Operators that must not stay on the CPU. Others may: ONNX Runtime computes shapes there on purpose.
constexpr const char* heavy_operators[] = {"Attention",
                                           "Conv",
                                           "DynamicQuantizeLinear",
                                           "FusedMatMul",
                                           "Gemm",
                                           "GroupQueryAttention",
                                           "LayerNormalization",
                                           "MatMul",
                                           "MatMulInteger",
                                           "MatMulNBits",
                                           "MultiHeadAttention",
                                           "QLinearConv",
                                           "QLinearMatMul",
                                           "RotaryEmbedding",
                                           "SimplifiedLayerNormalization",
                                           "SkipSimplifiedLayerNormalization",
                                           "Softmax",
                                           "TopK"};

// Nodes by provider and operator.
using Placement = std::map<std::string, std::map<std::string, std::int64_t>>;

Placement placement_of(const Api& api, const SessionHandle* handle) {
    const char* what = "onnxruntime does not say which provider runs what";
    const Subgraph* const* parts = nullptr;
    std::size_t count = 0;
    check(api, api.placement(handle, &parts, &count), what);
    Placement placement;
    for (std::size_t part = 0; part < count; ++part) {
        const char* provider = nullptr;
        check(api, api.subgraph_provider(parts[part], &provider), what);
        const Node* const* nodes = nullptr;
        std::size_t size = 0;
        check(api, api.subgraph_nodes(parts[part], &nodes, &size), what);
        for (std::size_t node = 0; node < size; ++node) {
            const char* type = nullptr;
            check(api, api.node_operator(nodes[node], &type), what);
            ++placement[provider][type];
        }
    }
    return placement;
}

std::string listed(const Placement& placement) {
    std::string text;
    for (const auto& [provider, operators] : placement) {
        std::int64_t nodes = 0;
        for (const auto& [type, count] : operators) nodes += count;
        text += (text.empty() ? "" : ", ") + provider + " has " + std::to_string(nodes);
    }
    return text.empty() ? "nothing was placed" : text;
}

// Address of a view; BackendError where it reaches past the end.
void* address_of(const View& view, std::size_t& bytes) {
    const std::int64_t size = view.shape.elements();
    const std::size_t item = item_bytes(view.dtype), held = view.buffer == nullptr ? 0 : view.buffer->bytes();
    if (view.offset > held || static_cast<std::uint64_t>(size) > (held - view.offset) / item) {
        throw BackendError("a view of " + std::to_string(size) + " values of " + name_of(view.dtype) +
                           " from byte " + std::to_string(view.offset) + " on does not fit its buffer of " +
                           std::to_string(held) + " bytes: allocate a larger one");
    }
    bytes = static_cast<std::size_t>(size) * item;
    return view.buffer == nullptr ? nullptr : static_cast<char*>(view.buffer->data()) + view.offset;
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::string stem_of(const std::string& file) { return std::filesystem::path(file).stem().string(); }

OrtBackend::OrtBackend(std::shared_ptr<const Library> library, std::unique_ptr<Device> device,
                       const BackendOptions& options)
    : library_(std::move(library)), device_(std::move(device)), options_(options) {}

std::string OrtBackend::description() const {
    return "ONNX Runtime " + library_->version() + " (" + library_->path() + "), " + device_->description();
}

const std::vector<std::string>& OrtBackend::cache_kinds() const {
    if (kinds_.empty()) kinds_ = device_->cache_kinds(options_.cache_dtype);
    return kinds_;
}

Owned<SessionOptions> OrtBackend::options_for(const std::string& file) {
    const Api& api = library_->api();
    const char* what = "onnxruntime refuses an option";
    SessionOptions* made = nullptr;
    check(api, api.create_options(&made), what);
    Owned<SessionOptions> options(made, api.release_options);
    check(api, api.set_log_severity(made, log_fatal),
          what);  // an error is thrown, and its message says the same
    // A plan of memory is kept for every combination of input shapes: decoding has a new one for each token.
    check(api, api.disable_mem_pattern(made), what);
    // Products with dequantised 4-bit weights would round their activations to 8 bits.
    check(api, api.add_config(made, "session.qdq_matmulnbits_accuracy_level", "0"), what);
    // Products that are fused with their (de)quantisation take integers alone.
    if (ends_with(stem_of(file), "_fp8")) {
        check(api, api.add_config(made, "session.disable_quant_qdq", "1"), what);
    }
    // Versions that do not know the next two, ignore them. Left alone, the idle threads of every graph
    // look for work for tens of milliseconds, on cores on which the next graph is being opened.
    check(api, api.add_config(made, "session.intra_op.spin_duration_us", spin_microseconds), what);
    if (on_device()) check(api, api.add_config(made, "session.record_ep_graph_assignment_info", "1"), what);
    if (options_.threads > 0) check(api, api.set_threads(made, options_.threads), what);
    device_->configure(*library_, made, file);
    return options;
}

std::unique_ptr<Session> OrtBackend::open(const std::string& /*graph*/, const std::string& file) {
    const Api& api = library_->api();
    const Owned<SessionOptions> options = options_for(file);
    SessionHandle* made = nullptr;
    Status* status = api.create_session(library_->env(), file.c_str(), options.get(), &made);
    if (status != nullptr) {
        const std::string message = message_of(api, status);
        if (!on_device() && ends_with(stem_of(file), "_bf16")) {
            throw BackendError(
                file + " is in bfloat16, for which " + name() +
                " has no kernels: run it with --backend tensorrt on an NVIDIA GPU, or build the "
                "bundle with --precision fp16 or fp32");
        }
        throw BackendError(std::string(name()) + " cannot load " + file + ": " + message);
    }
    Owned<SessionHandle> handle(made, api.release_session);
    device_->opened(file, on_device() && check_placement(made, stem_of(file)));
    return std::make_unique<OrtSession>(library_, std::move(handle), device_->memory(), name(),
                                        stem_of(file));
}

// Whether this version says who runs what, which only then can be refused.
bool OrtBackend::check_placement(const SessionHandle* handle, const std::string& graph) const {
    const Api& api = library_->api();
    if (api.placement == nullptr) return false;
    const Placement placement = placement_of(api, handle);
    if (placement.count(device_->provider()) == 0) {
        throw BackendError(std::string(name()) + " opened " + graph + ", but " + device_->provider() +
                           " took none of its nodes (" + listed(placement) +
                           "): use another backend for this bundle");
    }
    const auto own = placement.find(cpu_provider);
    std::string left;
    for (const auto& [type, count] : own == placement.end() ? Placement::mapped_type() : own->second) {
        const bool heavy = std::find(std::begin(heavy_operators), std::end(heavy_operators), type) !=
                           std::end(heavy_operators);
        if (heavy) left += (left.empty() ? "" : ", ") + std::to_string(count) + " " + type;
    }
    if (!left.empty() && device_->provider() != std::string(cpu_provider)) {
        throw BackendError(std::string(name()) + " would leave " + left + " of " + graph +
                           " to the CPU, for which " + device_->provider() +
                           " has no kernel in this precision: build the bundle with "
                           "--precision fp16, or use another backend");
    }
    return true;
}

void OrtBackend::upload(const View& target, const void* source) {
    std::size_t bytes = 0;
    void* address = address_of(target, bytes);
    if (bytes > 0) device_->copy(address, source, bytes);
}

void OrtBackend::download(void* target, const View& source) {
    std::size_t bytes = 0;
    const void* address = address_of(source, bytes);
    if (bytes > 0) device_->copy(target, address, bytes);
}

void OrtBackend::copy(const View& target, const View& source) {
    std::size_t into = 0, out = 0;
    void* to = address_of(target, into);
    const void* from = address_of(source, out);
    if (target.dtype != source.dtype || into != out) {
        throw BackendError("cannot copy " + std::to_string(source.shape.elements()) + " values of " +
                           name_of(source.dtype) + " into a view of " +
                           std::to_string(target.shape.elements()) + " of " + name_of(target.dtype) +
                           ": give as many of the same dtype");
    }
    if (out > 0) device_->copy(to, from, out);
}

}  // namespace fopru::ort

namespace fopru {

std::unique_ptr<Backend> make_ort_backend(const BackendOptions& options) {
    return std::make_unique<ort::OrtBackend>(ort::Library::load(), ort::make_cpu_device(), options);
}

std::unique_ptr<Backend> make_ort_cuda_backend(const BackendOptions& options) {
    const auto library = ort::Library::load();
    return std::make_unique<ort::OrtBackend>(library, ort::make_cuda_device(*library), options);
}

std::unique_ptr<Backend> make_ort_tensorrt_backend(const BackendOptions& options) {
    const auto library = ort::Library::load();
    return std::make_unique<ort::OrtBackend>(library, ort::make_tensorrt_device(*library), options);
}

}  // namespace fopru
