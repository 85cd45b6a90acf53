#include "backend/backend.h"

#include <limits>

#include "backend/registry.h"
#include "base/error.h"

namespace fopru {

namespace {

// Far more threads than cores only wait for each other; an engine asked for 10^5 of them never returns.
constexpr int most_threads = 1024;

struct DtypeRow {
    Dtype dtype;
    const char* name;
    std::size_t bytes;
};
constexpr DtypeRow dtypes[] = {{Dtype::float32, "float32", 4},
                               {Dtype::float16, "float16", 2},
                               {Dtype::bfloat16, "bfloat16", 2},
                               {Dtype::int64, "int64", 8},
                               {Dtype::boolean, "bool", 1}};

const DtypeRow& row_of(Dtype dtype) {
    for (const DtypeRow& row : dtypes) {
        if (row.dtype == dtype) return row;
    }
    throw BackendError("a tensor has no known dtype: give one of float32, float16, bfloat16, int64, bool");
}

int place_of(const std::vector<TensorName>& tensors, const std::string& name) {
    for (std::size_t place = 0; place < tensors.size(); ++place) {
        if (tensors[place].name == name) return static_cast<int>(place);
    }
    return -1;
}

}  // namespace

std::size_t item_bytes(Dtype dtype) { return row_of(dtype).bytes; }

const char* name_of(Dtype dtype) { return row_of(dtype).name; }

Dtype dtype_named(const std::string& name) {
    std::string known;
    for (const DtypeRow& row : dtypes) {
        if (name == row.name) return row.dtype;
        known += (known.empty() ? "" : ", ") + std::string(row.name);
    }
    throw BundleError("dtype is \"" + name + "\", expected one of " + known + ": " + rebuild_bundle);
}

Shape::Shape(std::initializer_list<std::int64_t> values) {
    for (const std::int64_t value : values) {
        if (rank < most) dims[rank++] = value;
    }
}

Shape::Shape(const std::vector<std::int64_t>& values) {
    if (values.size() > most) {
        throw BundleError("a tensor has " + std::to_string(values.size()) + " dims, expected " +
                          std::to_string(most) + " at most: " + rebuild_bundle);
    }
    for (const std::int64_t value : values) dims[rank++] = value;
}

std::int64_t Shape::elements() const {
    std::int64_t product = 1;
    for (int axis = 0; axis < rank; ++axis) {
        if (dims[axis] < 0 || __builtin_mul_overflow(product, dims[axis], &product)) {
            throw BackendError("a tensor has a dim of " + std::to_string(dims[axis]) +
                               ", which is negative or makes it too large: check image and bundle");
        }
    }
    return product;
}

bool Shape::operator==(const Shape& other) const {
    if (rank != other.rank) return false;
    for (int axis = 0; axis < rank; ++axis) {
        if (dims[axis] != other.dims[axis]) return false;
    }
    return true;
}

int required_place(int place, const std::string& whose, const std::string& tensor) {
    if (place >= 0) return place;
    throw BundleError(whose + " has no " + tensor + ": " + rebuild_bundle);
}

int Session::input(const std::string& name) const { return place_of(inputs(), name); }

int Session::output(const std::string& name) const { return place_of(outputs(), name); }

std::int64_t Session::greatest(int, int) const { return std::numeric_limits<std::int64_t>::max(); }

void Backend::copy_rows(const View& target, const View& source, RowPitches pitches) {
    check_rows(target, source, pitches);
    const std::int64_t rows = source.shape.dims[0], width = source.shape.dims[1];
    const auto item = item_bytes(source.dtype);
    for (std::int64_t row = 0; row < rows; ++row) {
        const auto into = target.offset + static_cast<std::size_t>(row * pitches.target) * item;
        const auto from = source.offset + static_cast<std::size_t>(row * pitches.source) * item;
        copy({target.buffer, target.dtype, {1, width}, into},
             {source.buffer, source.dtype, {1, width}, from});
    }
}

std::unique_ptr<Recorded> Backend::record(const std::vector<Binding*>&) { return nullptr; }

void check_rows(const View& target, const View& source, RowPitches pitches) {
    const std::int64_t width = source.shape.rank == 2 ? source.shape.dims[1] : -1;
    if (width < 0 || target.dtype != source.dtype || target.shape.elements() != source.shape.elements() ||
        pitches.target < width || pitches.source < width) {
        throw BackendError("cannot copy rows of " + std::to_string(width) + " values that begin " +
                           std::to_string(pitches.source) + " apart to places " +
                           std::to_string(pitches.target) +
                           " apart: give [rows, width] of one dtype, and at least the width between them");
    }
}

std::vector<std::string> built_backends() {
    std::vector<std::string> names;
    for (const BackendMaker& maker : backend_makers()) names.push_back(maker.name);
    return names;
}

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
    if (options.threads < 0 || options.threads > most_threads) {
        throw BackendError("threads is " + std::to_string(options.threads) + ", expected 1.." +
                           std::to_string(most_threads) + ", or none for all cores");
    }
    std::string known;
    for (const BackendMaker& maker : backend_makers()) {
        if (name == maker.name) return maker.make(options);
        known += (known.empty() ? "" : ", ") + std::string(maker.name);
    }
    if (name == "tensorrt") {
        throw BackendError(
            "backend is \"tensorrt\", which this library was built without: build it where TensorRT's "
            "headers are "
            "(-DFOPRU_WITH_TENSORRT=ON), or use one of " +
            known);
    }
    throw BackendError("backend is \"" + name + "\", expected one of " + known);
}

}  // namespace fopru
