// fopru_rt for C++17: fopru.h with owners, exceptions and vectors. Header-only; links nothing but fopru_rt.
//
//     fopru::Bundle bundle("bundles/demo");
//     fopru::Generator generator(bundle);  // or (bundle, fopru::Options().threads(2))
//     fopru::Image image = generator.image("photo.png");
//     fopru::Request request("How many digits are there?");
//     request.image(image).ratio(0.3);
//     fopru::Result result = generator.generate(request, [](std::string_view piece) { std::cout << piece; });
//
// What may run in which thread is said in fopru.h; what fails throws `Failure`. A request may be copied, and
// images and visual tokens too, which then have two owners; the others move alone. What was moved from may
// only be destroyed or assigned to.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "fopru/objects.hpp"
#include "fopru/request.hpp"

namespace fopru {
inline namespace api {  // not the names inside the library, should both be linked into one program

// Return false to cancel, or nothing to go on. What it throws comes out of `generate`.
using OnText = std::function<bool(std::string_view piece)>;

class Generator {
public:
    explicit Generator(const Bundle& bundle, const Options& options = {}) {
        const fopru_options own = options.view();
        fopru_generator* made = nullptr;
        check(fopru_generator_create(bundle.get(), &own, &made));
        generator_.reset(made);
    }

    Image image(const std::string& path) const {
        return image_by([&](fopru_image** out) { return fopru_image_from_file(get(), c_text(path), out); });
    }
    Image image(const std::uint8_t* file, std::size_t size) const {  // bytes of a PNG, JPEG, BMP or GIF
        return image_by([&](fopru_image** out) { return fopru_image_from_bytes(get(), file, size, out); });
    }
    Image image(const std::vector<std::uint8_t>& file) const { return image(file.data(), file.size()); }
    Image image(const fopru_frame& frame) const {
        return image_by([&](fopru_image** out) { return fopru_image_from_frame(get(), &frame, out); });
    }

    Result generate(const Request& request) { return generate(request, OnText()); }
    // `on_text` takes a std::string_view, valid during its call; it returns bool (false cancels) or nothing.
    template <class OnPiece>
    Result generate(const Request& request, OnPiece on_text) {
        Teller teller{wrapped(std::move(on_text)), nullptr};
        fopru_result* made = nullptr;
        const fopru_status status = request.view([&](const fopru_request* own) {
            return fopru_generate(get(), own, teller.on_text ? &Teller::call : nullptr, &teller, &made);
        });
        Result result(made);
        if (teller.thrown) std::rethrow_exception(teller.thrown);
        check(status);
        return result;
    }
    void cancel() noexcept { fopru_cancel(get()); }  // the answer under way, from any thread

    void warmup(const Request& request) {
        check(request.view([&](const fopru_request* own) { return fopru_warmup(get(), own); }));
    }
    void forget() { check(fopru_generator_forget(get())); }
    void release(const std::string& graph) { check(fopru_generator_release(get(), c_text(graph))); }
    std::string device() const { return fopru_generator_device(get()); }
    std::string warning() const { return fopru_generator_warning(get()); }

    Encoded encode(const Request& request) {
        fopru_encoded* made = nullptr;
        check(request.view([&](const fopru_request* own) { return fopru_encode(get(), own, &made); }));
        return Encoded(made);
    }
    std::vector<std::int64_t> prompt_ids(const Request& request) {
        return request.view([&](const fopru_request* own) {
            return ids_by([&](std::int64_t* out, std::size_t* count) {
                return fopru_prompt_ids(get(), own, nullptr, out, count);
            });
        });
    }
    std::vector<std::int64_t> tokenize(const std::string& text) const {
        return ids_by([&](std::int64_t* out, std::size_t* count) {
            return fopru_tokenize(get(), c_text(text), out, count);
        });
    }
    std::string detokenize(const std::vector<std::int64_t>& ids) const {
        std::size_t length = 0;
        check(fopru_detokenize(get(), ids.data(), ids.size(), nullptr, &length));
        std::string text(length + 1, '\0');
        std::size_t room = text.size();
        check(fopru_detokenize(get(), ids.data(), ids.size(), text.data(), &room));
        text.resize(length);
        return text;
    }
    // Runs the prompt; its last position's logits. Then one more token, at most `max_new_tokens` - 1 times.
    Logits prefill(const Request& request) {
        const float* logits = nullptr;
        check(request.view([&](const fopru_request* own) {
            return fopru_prefill(get(), own, nullptr, &logits, &vocabulary_);
        }));
        return {logits, vocabulary_};
    }
    Logits step(std::int64_t token) {
        const float* logits = nullptr;
        check(fopru_step(get(), token, &logits));
        return {logits, vocabulary_};
    }
    fopru_generator* get() const noexcept { return generator_.get(); }

private:
    // Keeps what the caller's function throws from crossing the C border.
    struct Teller {
        OnText on_text;
        std::exception_ptr thrown;

        static int call(const char* piece, std::size_t length, void* user) {
            auto& own = *static_cast<Teller*>(user);
            try {
                return own.on_text(std::string_view(piece, length)) ? 0 : 1;
            } catch (...) {
                own.thrown = std::current_exception();
                return 1;
            }
        }
    };

    static OnText wrapped(OnText on_text) { return on_text; }
    template <class OnPiece>
    static OnText wrapped(OnPiece on_text) {
        if constexpr (std::is_void_v<std::invoke_result_t<OnPiece&, std::string_view>>) {
            return [on_text](std::string_view piece) mutable { return on_text(piece), true; };
        } else {
            return on_text;
        }
    }

    template <class Make>
    static Image image_by(const Make& make) {
        fopru_image* made = nullptr;
        check(make(&made));
        return Image(made);
    }
    template <class Ask>
    static std::vector<std::int64_t> ids_by(const Ask& ask) {
        std::size_t count = 0;
        check(ask(nullptr, &count));
        std::vector<std::int64_t> ids(count);
        check(ask(ids.data(), &count));
        return ids;
    }

    Owned<fopru_generator, fopru_generator_free> generator_;
    std::int64_t vocabulary_ = 0;  // of the last `prefill`
};

}  // namespace api
}  // namespace fopru
