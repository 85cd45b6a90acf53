#include "backend/ort/ort_session.h"

#include "base/error.h"

namespace fopru::ort {

namespace {

struct Element {
    Dtype dtype;
    int number;
};
constexpr Element elements[] = {{Dtype::float32, element_float},
                                {Dtype::float16, element_float16},
                                {Dtype::bfloat16, element_bfloat16},
                                {Dtype::int64, element_int64},
                                {Dtype::boolean, element_bool}};

Dtype dtype_of(int number) {
    for (const Element& element : elements) {
        if (element.number == number) return element.dtype;
    }
    return Dtype::float32;
}

Owned<MemoryInfo> memory_info(const Api& api, const char* name) {
    const bool host = std::string(name) == "Cpu";
    MemoryInfo* made = nullptr;
    const int allocator = host ? arena_allocator : device_allocator;
    check(api, api.create_memory_info(name, allocator, 0, default_memory, &made),
          "onnxruntime names no memory");
    return {made, api.release_memory_info};
}

}  // namespace

int element_of(Dtype dtype) {
    for (const Element& element : elements) {
        if (element.dtype == dtype) return element.number;
    }
    throw BackendError("onnxruntime has no such dtype: give one of float32, float16, bfloat16, int64, bool");
}

// Addresses as ONNX Runtime's values: a run takes them in, and they are made anew only where something
// changed. All arrays have their size from the start, so binding and running allocate nothing here.
class OrtBinding : public Binding {
public:
    explicit OrtBinding(const OrtSession& session)
        : session_(session), inputs_(session.inputs_), outputs_(session.outputs_) {}

    void set_input(int index, const View& view) override { set(inputs_, session_.inputs_, index, view); }
    void set_output(int index, const View& view) override { set(outputs_, session_.outputs_, index, view); }

    void run() override {
        const Api& api = session_.library_->api();
        inputs_.gather();
        outputs_.gather();
        Status* status = api.run(session_.handle_.get(), nullptr, inputs_.names.data(),
                                 inputs_.pointers.data(), inputs_.names.size(), outputs_.names.data(),
                                 outputs_.names.size(), outputs_.pointers.data());
        if (status != nullptr) {
            throw BackendError(session_.backend() + " failed in " + session_.name() + ": " +
                               message_of(api, status));
        }
    }

private:
    struct Bound {
        Owned<Value> value{nullptr, nullptr};
        const void* address = nullptr;
        Shape shape;
    };

    // The tensors of one side; those that are not bound are left out of a run, which refuses missing inputs.
    struct Tensors {
        explicit Tensors(const OrtSession::Side& given) : side(given), bound(given.tensors.size()) {
            names.reserve(bound.size());
            pointers.reserve(bound.size());
        }
        void gather() {
            names.clear();
            pointers.clear();
            for (std::size_t place = 0; place < bound.size(); ++place) {
                if (bound[place].value == nullptr) continue;
                names.push_back(side.tensors[place].name.c_str());
                pointers.push_back(bound[place].value.get());
            }
        }
        const OrtSession::Side& side;
        std::vector<Bound> bound;
        std::vector<const char*> names;
        std::vector<Value*> pointers;
    };

    void set(Tensors& tensors, const OrtSession::Side& side, int index, const View& view) {
        if (index < 0 || static_cast<std::size_t>(index) >= side.tensors.size()) {
            throw BackendError(session_.backend() + " cannot bind tensor " + std::to_string(index) + " of " +
                               session_.name() + ", which has " + std::to_string(side.tensors.size()) +
                               ": check the names of the bundle's graphs");
        }
        const std::size_t place = static_cast<std::size_t>(index);
        check_view(side, place, view);
        void* address = static_cast<char*>(view.buffer->data()) + view.offset;
        Bound& bound = tensors.bound[place];
        if (bound.value != nullptr && bound.address == address && bound.shape == view.shape) return;
        const Api& api = session_.library_->api();
        const std::size_t bytes = static_cast<std::size_t>(view.shape.elements()) * item_bytes(view.dtype);
        Value* made = nullptr;
        Status* status =
            api.create_tensor(session_.memory_.get(), address, bytes, view.shape.dims,
                              static_cast<std::size_t>(view.shape.rank), side.elements[place], &made);
        if (status != nullptr) {
            throw BackendError(session_.backend() + " cannot bind " + side.tensors[place].name + " of " +
                               session_.name() + ": " + message_of(api, status));
        }
        bound.value = Owned<Value>(made, api.release_value);
        bound.address = address;
        bound.shape = view.shape;
    }

    void check_view(const OrtSession::Side& side, std::size_t place, const View& view) const {
        const std::int64_t size = view.shape.elements();
        const std::size_t item = item_bytes(view.dtype),
                          held = view.buffer == nullptr ? 0 : view.buffer->bytes();
        if (view.buffer == nullptr || view.offset > held ||
            static_cast<std::uint64_t>(size) > (held - view.offset) / item) {
            throw BackendError("a view of " + std::to_string(size) + " values of " + name_of(view.dtype) +
                               " from byte " + std::to_string(view.offset) +
                               " on does not fit its buffer of " + std::to_string(held) +
                               " bytes: allocate a larger one");
        }
        if (element_of(view.dtype) != side.elements[place]) {
            throw BackendError(session_.backend() + " cannot bind " + side.tensors[place].name + " of " +
                               session_.name() + ": got " + name_of(view.dtype) +
                               ", which is not its dtype: " + rebuild_bundle);
        }
    }

    const OrtSession& session_;
    Tensors inputs_, outputs_;
};

OrtSession::OrtSession(std::shared_ptr<const Library> library, Owned<SessionHandle> handle,
                       const char* memory, std::string backend, std::string name)
    : library_(std::move(library)),
      handle_(std::move(handle)),
      memory_(memory_info(library_->api(), memory)),
      backend_(std::move(backend)),
      name_(std::move(name)),
      inputs_(side(true)),
      outputs_(side(false)) {}

std::unique_ptr<Binding> OrtSession::bind() { return std::make_unique<OrtBinding>(*this); }

std::string OrtSession::tensor_name(bool inputs, std::size_t place) const {
    const Api& api = library_->api();
    Allocator* allocator = nullptr;
    check(api, api.default_allocator(&allocator), "onnxruntime has no allocator");
    char* text = nullptr;
    const auto ask = inputs ? api.input_name : api.output_name;
    check(api, ask(handle_.get(), place, allocator, &text), "onnxruntime does not name a tensor");
    const std::string name = text;
    if (Status* status = api.free(allocator, text)) api.release_status(status);
    return name;
}

OrtSession::Side OrtSession::side(bool inputs) const {
    const Api& api = library_->api();
    const char* what = "onnxruntime does not describe a graph";
    std::size_t count = 0;
    check(api, (inputs ? api.input_count : api.output_count)(handle_.get(), &count), what);
    Side made;
    for (std::size_t place = 0; place < count; ++place) {
        TypeInfo* type = nullptr;
        check(api, (inputs ? api.input_type : api.output_type)(handle_.get(), place, &type), what);
        const Owned<TypeInfo> owned(type, api.release_type);
        const TensorInfo* info = nullptr;  // of `type`; null for what is no tensor
        check(api, api.tensor_info(type, &info), what);
        int element = 0;
        std::vector<std::int64_t> dims;
        if (info != nullptr) {
            std::size_t rank = 0;
            check(api, api.element_type(info, &element), what);
            check(api, api.rank(info, &rank), what);
            dims.resize(rank);
            check(api, api.dims(info, dims.data(), rank), what);
        }
        made.tensors.push_back({tensor_name(inputs, place), dtype_of(element), std::move(dims)});
        made.elements.push_back(element);
    }
    return made;
}

}  // namespace fopru::ort
