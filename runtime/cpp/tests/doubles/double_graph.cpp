#include "double_graph.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>

#include "backend/ort/ort_session.h"
#include "base/error.h"
#include "double_device.h"

namespace fopru_double {

namespace {

using fopru::Dtype;
using fopru::TensorName;
using nvinfer1::DataType;
namespace ort = fopru::ort;

constexpr const char* on_host[] = {"num_keep", "grid", "num_logits_to_keep"};

// Functions of ONNX Runtime that the library does without: outputs of any shape. By their slots.
struct Values {
    ort::Status* (*data)(ort::Value*, void**) = nullptr;
    ort::Status* (*info)(const ort::Value*, ort::TensorInfo**) = nullptr;
    void (*release)(ort::TensorInfo*) = nullptr;
};

Values values_of(const ort::Library& library) {
    struct Base {
        const void* const* (*table)(std::uint32_t);
    };
    void* handle = ::dlopen(library.path().c_str(), RTLD_NOW | RTLD_NOLOAD);
    const Base* (*base)() = nullptr;
    *reinterpret_cast<void**>(&base) = handle == nullptr ? nullptr : ::dlsym(handle, "OrtGetApiBase");
    if (base == nullptr) throw fopru::BackendError("the stand-in finds no ONNX Runtime in this process");
    const void* const* table = base()->table(ort::api_version);
    Values values;
    std::memcpy(&values.data, table + 51, sizeof values.data);        // GetTensorMutableData
    std::memcpy(&values.info, table + 65, sizeof values.info);        // GetTensorTypeAndShape
    std::memcpy(&values.release, table + 99, sizeof values.release);  // ReleaseTensorTypeAndShapeInfo
    return values;
}

DataType type_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::float32: return DataType::kFLOAT;
        case Dtype::float16: return DataType::kHALF;
        case Dtype::bfloat16: return DataType::kBF16;
        case Dtype::int64: return DataType::kINT64;
        case Dtype::boolean: return DataType::kBOOL;
    }
    return DataType::kFLOAT;
}

std::size_t size_of(const Dims& dims) {
    std::size_t size = 1;
    for (const std::int64_t dim : dims) size *= static_cast<std::size_t>(dim);
    return size;
}

class Graph final : public Toy {
public:
    explicit Graph(const fopru::Json& engine)
        : library_(ort::Library::load()), more_(values_of(*library_)), memory_(host_memory()) {
        if (const fopru::Json* brain = engine.find("brain")) {
            for (const fopru::Json& name : *brain->array()) brain_.insert(*name.text());
        }
        session_ = opened(*engine.find("onnx")->text());
        const auto add = [&](const TensorName& own, bool input) {
            const bool brain = brain_.count(own.name) != 0;
            const bool host =
                std::find(std::begin(on_host), std::end(on_host), own.name) != std::end(on_host);
            const DataType type = brain ? DataType::kBF16 : type_of(own.dtype);
            tensors_.push_back({own.name, type, own.shape, input, host});
        };
        for (const TensorName& own : session_->inputs()) add(own, true);
        for (const TensorName& own : session_->outputs()) add(own, false);
    }

    const std::vector<ToyTensor>& tensors() const override { return tensors_; }

    // By running it on zeros, once for shapes and values of the host.
    Dims shape_of(const std::string& output, const Given& given) const override {
        const auto [found, fresh] = shapes_.try_emplace({given.shapes, given.values});
        if (fresh) {
            std::map<std::string, std::vector<unsigned char>> zeros;
            std::map<std::string, unsigned char*> data;
            for (const auto& [name, shape] : given.shapes) {
                if (given.values.count(name) != 0) continue;
                zeros[name].assign(8 * size_of(shape) + 8, 0);
                data[name] = zeros[name].data();
            }
            for (const Output& own : run_graph(given, data)) found->second[own.name] = own.dims;
        }
        return found->second.at(output);
    }

    void run(const Given& given, const std::map<std::string, unsigned char*>& data) const override {
        try {
            for (const Output& own : run_graph(given, data)) {
                if (own.dims != shape_of(own.name, given)) device().violate(own.name + " has another shape");
                write(own, data.at(own.name));
            }
        } catch (const fopru::BackendError& error) {
            device().violate(error.what());
            throw Fault{};
        }
    }

private:
    struct Output {
        std::string name;
        Dims dims;
        std::size_t item;
        ort::Owned<ort::Value> value;
        const unsigned char* data;
    };
    using Key = std::pair<std::map<std::string, Dims>, std::map<std::string, std::vector<std::int64_t>>>;

    ort::Owned<ort::MemoryInfo> host_memory() const {
        const ort::Api& api = library_->api();
        ort::MemoryInfo* made = nullptr;
        ort::check(api, api.create_memory_info("Cpu", ort::arena_allocator, 0, ort::default_memory, &made),
                   "no memory");
        return {made, api.release_memory_info};
    }

    std::unique_ptr<ort::OrtSession> opened(const std::string& file) {
        const ort::Api& api = library_->api();
        ort::SessionOptions* options = nullptr;
        ort::check(api, api.create_options(&options), "no options");
        const ort::Owned<ort::SessionOptions> owned(options, api.release_options);
        ort::check(api, api.set_threads(options, 1), "no threads");
        ort::check(api, api.set_log_severity(options, ort::log_fatal), "no log level");
        ort::check(api, api.create_session(library_->env(), file.c_str(), options, &handle_),
                   "the stand-in cannot open an engine's graph");
        return std::make_unique<ort::OrtSession>(
            library_, ort::Owned<ort::SessionHandle>(handle_, api.release_session), "Cpu", "stand-in", file);
    }

    std::vector<Output> run_graph(const Given& given,
                                  const std::map<std::string, unsigned char*>& data) const {
        const ort::Api& api = library_->api();
        std::vector<const char*> inputs, outputs;
        std::vector<ort::Owned<ort::Value>> feeds;
        std::vector<ort::Value*> fed;
        std::map<std::string, std::vector<float>> wide;  // of bfloat16
        for (const TensorName& own : session_->inputs()) {
            const Dims& dims = given.shapes.at(own.name);
            const auto host = given.values.find(own.name);
            const void* source = host != given.values.end() ? static_cast<const void*>(host->second.data())
                                                            : static_cast<const void*>(data.at(own.name));
            if (brain_.count(own.name) != 0) source = widened(wide[own.name], source, size_of(dims));
            ort::Value* made = nullptr;
            const std::size_t bytes = size_of(dims) * fopru::item_bytes(own.dtype);
            ort::check(api,
                       api.create_tensor(memory_.get(), const_cast<void*>(source), bytes, dims.data(),
                                         dims.size(), ort::element_of(own.dtype), &made),
                       "no tensor");
            feeds.emplace_back(made, api.release_value);
            inputs.push_back(own.name.c_str());
            fed.push_back(made);
        }
        for (const TensorName& own : session_->outputs()) outputs.push_back(own.name.c_str());
        std::vector<ort::Value*> made(outputs.size(), nullptr);
        ort::check(api,
                   api.run(handle_, nullptr, inputs.data(), fed.data(), fed.size(), outputs.data(),
                           outputs.size(), made.data()),
                   "the stand-in's graph failed");
        std::vector<Output> all;
        for (std::size_t place = 0; place < made.size(); ++place) {
            const TensorName& own = session_->outputs()[place];
            ort::Owned<ort::Value> value(made[place], api.release_value);
            void* content = nullptr;
            ort::check(api, more_.data(value.get(), &content), "no data");
            all.push_back({own.name, dims_of(*value), fopru::item_bytes(own.dtype), std::move(value),
                           static_cast<const unsigned char*>(content)});
        }
        return all;
    }

    Dims dims_of(const ort::Value& value) const {
        const ort::Api& api = library_->api();
        ort::TensorInfo* info = nullptr;
        ort::check(api, more_.info(&value, &info), "no shape");
        const ort::Owned<ort::TensorInfo> owned(info, more_.release);
        std::size_t rank = 0;
        ort::check(api, api.rank(info, &rank), "no rank");
        Dims dims(rank);
        ort::check(api, api.dims(info, dims.data(), rank), "no dims");
        return dims;
    }

    static const void* widened(std::vector<float>& wide, const void* source, std::size_t size) {
        wide.resize(size + 1);
        for (std::size_t at = 0; at < size; ++at) {
            std::uint16_t half = 0;
            std::memcpy(&half, static_cast<const char*>(source) + at * sizeof half, sizeof half);
            const std::uint32_t bits = std::uint32_t{half} << 16;
            std::memcpy(&wide[at], &bits, sizeof bits);
        }
        return wide.data();
    }

    void write(const Output& own, unsigned char* target) const {
        const std::size_t size = size_of(own.dims);
        if (brain_.count(own.name) == 0) {
            if (size != 0) std::memcpy(target, own.data, size * own.item);
            return;
        }
        for (std::size_t at = 0; at < size; ++at) {  // rounded by the graph
            std::uint32_t bits = 0;
            std::memcpy(&bits, own.data + at * sizeof bits, sizeof bits);
            const auto half = static_cast<std::uint16_t>(bits >> 16);
            if ((bits & 0xFFFF) != 0) device().violate(own.name + " is no bfloat16");
            std::memcpy(target + at * sizeof half, &half, sizeof half);
        }
    }

    std::shared_ptr<const ort::Library> library_;
    Values more_;
    ort::Owned<ort::MemoryInfo> memory_;
    ort::SessionHandle* handle_ = nullptr;  // of the session
    std::unique_ptr<ort::OrtSession> session_;
    std::set<std::string> brain_;
    std::vector<ToyTensor> tensors_;
    mutable std::map<Key, std::map<std::string, Dims>> shapes_;
};

}  // namespace

std::unique_ptr<Toy> make_graph(const fopru::Json& engine) { return std::make_unique<Graph>(engine); }

}  // namespace fopru_double
