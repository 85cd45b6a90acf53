// `_fopru_native`: the C functions as Python classes. `runtime/native.py` makes a `Generator` of them.
//
// Arrays go in and out by DLPack and the buffer protocol: numpy, torch and others, on the host, without a copy in.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <vector>

#include "request.h"

namespace nb = nanobind;
using namespace fopru_python;

namespace {

using Pixels = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, const float, nb::c_contig>;
using Integers = nb::ndarray<nb::numpy, const int64_t, nb::c_contig>;

Integers copied(const int64_t* values, size_t count) {
    auto owned = std::make_unique<std::vector<int64_t>>(values, values + count);
    const int64_t* data = owned->data();
    nb::capsule owner(owned.release(), [](void* held) noexcept { delete static_cast<std::vector<int64_t>*>(held); });
    return Integers(data, {count}, owner);
}

// What one generator does. Python's lock is let go while C works, so that threads with a generator each run at once.
class Generator {
public:
    Generator(const BundleHandle& bundle, const nb::dict& options) {
        const std::string backend = nb::cast<std::string>(options["backend"]);
        const std::string engines = nb::cast<std::string>(options["engines"]);
        fopru_options given = fopru_options_default();
        given.backend = backend.c_str();
        given.engines = engines.empty() ? nullptr : engines.c_str();
        given.threads = nb::cast<int>(options["threads"]);
        given.reuse_features = nb::cast<uint64_t>(options["reuse_features"]);
        given.reuse_prefix = nb::cast<bool>(options["reuse_prefix"]) ? 1 : 0;
        check(fopru_generator_create(bundle.get(), &given, &object_));
    }
    ~Generator() { fopru_generator_free(object_); }
    Generator(const Generator&) = delete;
    Generator& operator=(const Generator&) = delete;

    ImageHandle* image_from_file(const std::string& path) {
        fopru_image* image = nullptr;
        check(fopru_image_from_file(object_, path.c_str(), &image));
        return new ImageHandle(image);  // nanobind takes it over
    }

    ImageHandle* image_from_array(const Pixels& pixels) {
        const bool gray = pixels.ndim() == 2 || (pixels.ndim() == 3 && pixels.shape(2) == 1);
        if (!gray && (pixels.ndim() != 3 || (pixels.shape(2) != 3 && pixels.shape(2) != 4))) {
            throw nb::value_error("an image array is uint8 [H, W] or [H, W, 1, 3 or 4]");
        }
        const size_t channels = gray ? 1 : pixels.shape(2);
        fopru_frame frame{};
        frame.format = gray ? FOPRU_GRAY : channels == 3 ? FOPRU_RGB : FOPRU_RGBA;
        frame.height = static_cast<int>(pixels.shape(0));
        frame.width = static_cast<int>(pixels.shape(1));
        frame.data = pixels.data();
        frame.stride = pixels.shape(1) * channels;
        fopru_image* image = nullptr;
        check(fopru_image_from_frame(object_, &frame, &image));
        return new ImageHandle(image);
    }

    std::string generate(const nb::dict& fields, const nb::object& on_text, const EncodedHandle* encoded) {
        RequestData request(fields);
        request.get()->encoded = encoded == nullptr ? nullptr : encoded->get();
        Callback callback{on_text, {}};
        fopru_result* result = nullptr;
        fopru_status status;
        {
            nb::gil_scoped_release unlocked;
            status = fopru_generate(object_, request.get(), call, &callback, &result);
        }
        if (callback.error) {
            fopru_result_free(result);
            callback.error->restore();
            throw nb::python_error();
        }
        check(status);
        std::string json = fopru_result_json(result);
        fopru_result_free(result);
        return json;
    }

    void cancel() { fopru_cancel(object_); }
    void forget() { check(fopru_generator_forget(object_)); }
    void release(const std::string& graph) { check(fopru_generator_release(object_, graph.c_str())); }
    std::string device() { return fopru_generator_device(object_); }
    std::string warning() { return fopru_generator_warning(object_); }

    void warmup(const nb::dict& fields) {
        const RequestData request(fields);
        check(unlocked([&] { return fopru_warmup(object_, request.get()); }));
    }

    EncodedHandle* encode(const nb::dict& fields) {
        const RequestData request(fields);
        fopru_encoded* encoded = nullptr;
        check(unlocked([&] { return fopru_encode(object_, request.get(), &encoded); }));
        return new EncodedHandle(encoded);
    }

    Integers prompt_ids(const nb::dict& fields, const EncodedHandle& encoded) {
        const RequestData request(fields);
        size_t count = 0;
        check(fopru_prompt_ids(object_, request.get(), encoded.get(), nullptr, &count));
        std::vector<int64_t> ids(count);
        check(fopru_prompt_ids(object_, request.get(), encoded.get(), ids.data(), &count));
        return copied(ids.data(), count);
    }

    Integers tokenize(const std::string& text) {
        size_t count = 0;
        check(fopru_tokenize(object_, text.c_str(), nullptr, &count));
        std::vector<int64_t> ids(count);
        check(fopru_tokenize(object_, text.c_str(), ids.data(), &count));
        return copied(ids.data(), count);
    }

    std::string detokenize(const nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& ids) {
        size_t length = 0;
        check(fopru_detokenize(object_, ids.data(), ids.shape(0), nullptr, &length));
        std::string text(length + 1, '\0');
        size_t room = text.size();
        check(fopru_detokenize(object_, ids.data(), ids.shape(0), text.data(), &room));
        text.resize(length);
        return text;
    }

    // A copy of the logits: those of the library change with the next step.
    nb::object prefill(const nb::dict& fields, const EncodedHandle* encoded) {
        const RequestData request(fields);
        const float* logits = nullptr;
        check(unlocked([&] {
            return fopru_prefill(object_, request.get(), encoded == nullptr ? nullptr : encoded->get(), &logits,
                                 &vocabulary_);
        }));
        return vector_of(logits);
    }

    nb::object step(int64_t token) {
        const float* logits = nullptr;
        check(unlocked([&] { return fopru_step(object_, token, &logits); }));
        return vector_of(logits);
    }

private:
    struct Callback {
        nb::object on_text;
        std::optional<nb::python_error> error;
    };

    // Must not throw: it is called from C. True ends the answer, as does an exception, which is raised afterwards.
    static int call(const char* piece, size_t length, void* user) noexcept {
        auto* callback = static_cast<Callback*>(user);
        nb::gil_scoped_acquire locked;
        try {
            return nb::cast<bool>(callback->on_text(nb::str(piece, length))) ? 1 : 0;
        } catch (nb::python_error& error) {
            callback->error.emplace(std::move(error));
        } catch (...) {
        }
        return 1;
    }

    template <typename Work>
    static fopru_status unlocked(const Work& work) {
        nb::gil_scoped_release released;
        return work();
    }

    nb::object vector_of(const float* logits) const {
        Floats view(logits, {static_cast<size_t>(vocabulary_)}, nb::none());
        return nb::cast(view, nb::rv_policy::copy);
    }

    fopru_generator* object_ = nullptr;
    int64_t vocabulary_ = 0;
};

BundleHandle* open_bundle(const std::string& path, bool verify) {
    fopru_bundle* bundle = nullptr;
    check(fopru_bundle_open(path.c_str(), verify ? FOPRU_VERIFY : FOPRU_NO_VERIFY, &bundle));
    return new BundleHandle(bundle);
}

Floats pixels_of(nb::handle_t<ImageHandle> self) {
    int64_t dims[6];
    int rank = 0;
    const float* data = fopru_image_pixels(nb::cast<const ImageHandle&>(self).get(), dims, &rank);
    return Floats(data, static_cast<size_t>(rank), reinterpret_cast<const size_t*>(dims), self);
}

Floats features_of(const EncodedHandle& encoded) {
    int64_t rows = 0, width = 0;
    check(fopru_encoded_features(encoded.get(), nullptr, &rows, &width));
    auto owned = std::make_unique<std::vector<float>>(static_cast<size_t>(rows) * static_cast<size_t>(width));
    check(fopru_encoded_features(encoded.get(), owned->data(), &rows, &width));
    const float* data = owned->data();
    nb::capsule owner(owned.release(), [](void* held) noexcept { delete static_cast<std::vector<float>*>(held); });
    return Floats(data, {static_cast<size_t>(rows), static_cast<size_t>(width)}, owner);
}

Integers kept_of(const EncodedHandle& encoded, size_t image) {
    size_t count = 0;
    const int64_t* kept = fopru_encoded_kept(encoded.get(), image, &count);
    if (kept == nullptr) throw nb::index_error("there is no image with this number");
    return copied(kept, count);
}

}  // namespace

NB_MODULE(_fopru_native, module) {
    module.doc() = "The C++ runtime; `runtime.Generator(bundle, backend=\"native\")` is its Python face.";
    module.def("version", &fopru_version);
    module.def("abi_version", &fopru_abi_version);
    nb::class_<BundleHandle>(module, "Bundle").def_prop_ro("info", [](const BundleHandle& bundle) {
        return std::string(fopru_bundle_info(bundle.get()));
    });
    module.def("open_bundle", &open_bundle, nb::arg("path"), nb::arg("verify") = true);
    nb::class_<ImageHandle>(module, "Image")
        .def_prop_ro("pixels", &pixels_of, nb::rv_policy::automatic)  // owned by what the function says
        .def_prop_ro("tokens", [](const ImageHandle& image) { return fopru_image_tokens(image.get()); });
    nb::class_<EncodedHandle>(module, "Encoded")
        .def_prop_ro("features", &features_of, nb::rv_policy::automatic)
        .def("kept", &kept_of, nb::arg("image"));
    nb::class_<Generator>(module, "Generator")
        .def(nb::init<const BundleHandle&, const nb::dict&>(), nb::arg("bundle"), nb::arg("options"))
        .def("image_from_file", &Generator::image_from_file, nb::arg("path"))
        .def("image_from_array", &Generator::image_from_array, nb::arg("pixels"))
        .def("generate", &Generator::generate, nb::arg("request"), nb::arg("on_text"),
             nb::arg("encoded").none() = nb::none())
        .def("cancel", &Generator::cancel)
        .def("forget", &Generator::forget)
        .def("release", &Generator::release, nb::arg("graph"))
        .def("warmup", &Generator::warmup, nb::arg("request"))
        .def("encode", &Generator::encode, nb::arg("request"))
        .def("prompt_ids", &Generator::prompt_ids, nb::arg("request"), nb::arg("encoded"))
        .def("tokenize", &Generator::tokenize, nb::arg("text"))
        .def("detokenize", &Generator::detokenize, nb::arg("ids"))
        .def("prefill", &Generator::prefill, nb::arg("request"), nb::arg("encoded").none() = nb::none())
        .def("step", &Generator::step, nb::arg("token"))
        .def_prop_ro("device", &Generator::device)
        .def_prop_ro("warning", &Generator::warning);
}
