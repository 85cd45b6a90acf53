// What runs graphs. The rest of the runtime knows these classes alone; a backend is one folder beside this
// file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace fopru {

enum class Dtype { float32, float16, bfloat16, int64, boolean };  // boolean: one byte
std::size_t item_bytes(Dtype dtype);
Dtype dtype_named(const std::string& name);  // "float32", ..., "bool"; BundleError
const char* name_of(Dtype dtype);

// Memory of a backend, on its device or on the host. Owned by whoever holds the pointer; every view of it
// must be gone from bindings before.
class Buffer {
public:
    virtual ~Buffer() = default;
    virtual void* data() = 0;  // an address of the device where it is on one
    virtual std::size_t bytes() const = 0;
};

// Dims in place, so that making a view allocates nothing.
struct Shape {
    static constexpr int most = 6;
    std::int64_t dims[most] = {};
    int rank = 0;

    Shape() = default;
    Shape(std::initializer_list<std::int64_t> values);
    explicit Shape(const std::vector<std::int64_t>& values);  // BundleError beyond `most`
    std::int64_t elements() const;                            // BackendError: negative, or beyond 64 bits
    bool operator==(const Shape& other) const;
};

// A C-contiguous tensor inside a buffer; `offset` is bytes.
struct View {
    Buffer* buffer = nullptr;
    Dtype dtype = Dtype::float32;
    Shape shape;
    std::size_t offset = 0;
};

struct RowPitches {
    std::int64_t target = 0, source = 0;  // elements from row to row
};

// Tensors of one graph, bound to places. `set_*` with the same name again moves a binding; a run reads and
// writes what is bound then. Not to be used from two threads at once. BackendError.
class Binding {
public:
    virtual ~Binding() = default;
    virtual void set_input(int index, const View& view) = 0;   // places in `Session::inputs`
    virtual void set_output(int index, const View& view) = 0;  // places in `Session::outputs`
    virtual void run() = 0;  // on a device: begins, `Backend::wait` is behind it
};

// Runs of some bindings, one behind the other, as they were bound when it was made: for less than running
// them. The bindings must outlive it and stay as they are. Not to be used from two threads at once.
class Recorded {
public:
    virtual ~Recorded() = default;
    virtual void run() = 0;  // BackendError; begins, as that of a binding
    // Why the bindings run plainly, and so slower; empty where they do not.
    virtual const std::string& refusal() const = 0;
};

struct TensorName {
    std::string name;
    Dtype dtype;
    std::vector<std::int64_t> shape;  // -1 varies
};

// An opened graph. Bindings must not outlive it. A session may be used from several threads through a binding
// each.
class Session {
public:
    virtual ~Session() = default;
    virtual const std::vector<TensorName>& inputs() const = 0;
    virtual const std::vector<TensorName>& outputs() const = 0;
    virtual std::unique_ptr<Binding> bind() = 0;
    // Greatest dim of an input that the session takes, the greatest there is where it does not say. Engines
    // do.
    virtual std::int64_t greatest(int index, int axis) const;
    int input(const std::string& name) const;  // place, -1 where there is none
    int output(const std::string& name) const;
};

// `place` of a tensor, unless it is -1: BundleError, with `whose` as the subject of its sentence.
int required_place(int place, const std::string& whose, const std::string& tensor);

struct BackendOptions {
    int threads = 0;      // inside an operator; 0: the backend's choice
    std::string engines;  // TensorRT: folder of engines; empty: the bundle's own
    std::string cache_dtype = "float32";
};

// One device, one stream. Not to be used from two threads at once, but for what sessions allow.
class Backend {
public:
    virtual ~Backend() = default;
    virtual const char* name() const = 0;
    virtual std::string description() const = 0;  // library, version, device: for `fopru info`
    virtual const std::vector<std::string>& cache_kinds()
        const = 0;  // "shared", "append", "concat": the best first
    virtual bool on_device() const { return false; }
    virtual std::unique_ptr<Session> open(const std::string& graph, const std::string& file) = 0;

    virtual std::unique_ptr<Buffer> allocate(std::size_t bytes) = 0;  // zeroed; BackendError
    // Between host and buffer, in order with runs. On the host these are plain copies.
    virtual void upload(const View& target, const void* source) = 0;
    virtual void download(void* target, const View& source) = 0;    // waits for it
    virtual void copy(const View& target, const View& source) = 0;  // same dtype and elements
    // Rows of the source [rows, width], which begin so many elements apart in target and source; one copy
    // where the device can. BackendError: past the end of a buffer, or rows that overlap.
    virtual void copy_rows(const View& target, const View& source, RowPitches pitches);
    virtual void wait() {}

    // Whether `record` gives anything: then decoding steps are made of shapes that stay.
    virtual bool records() const { return false; }
    // Runs the bindings once. What was recorded with the same buffers before is not recorded again. Null
    // where the backend cannot record at all. BackendError: they cannot be run.
    virtual std::unique_ptr<Recorded> record(const std::vector<Binding*>& bindings);
};

// For `Backend::copy_rows`. BackendError: other dtypes or sizes, no rows, or rows that overlap.
void check_rows(const View& target, const View& source, RowPitches pitches);

// "onnxruntime", "ort-cuda", "ort-tensorrt", "tensorrt". BackendError: unknown, not built in, or its library
// is missing: the message says what was looked for where.
std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options);
std::vector<std::string> built_backends();

}  // namespace fopru
