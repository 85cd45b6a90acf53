// Answers where memory ends in the middle, for tests/test_cpp_capi.py: memory_program BUNDLE. Every
// allocation of the library is refused once; the generator must say so, and then give the answers that it
// gives otherwise.
#include <dlfcn.h>

#include <cstdio>

#include "fopru/fopru.hpp"
#include "operators_new.h"

namespace {

thread_local long left = -1;  // allocations until one is refused; -1: none is
thread_local bool refused = false;

// Those of ONNX Runtime are left alone: not every one of its own ends in order.
bool of_library(void* caller) {
    static void* const base = [] {
        Dl_info info{};
        dladdr(reinterpret_cast<void*>(&fopru_version), &info);
        return info.dli_fbase;
    }();
    Dl_info info{};
    return dladdr(caller, &info) != 0 && info.dli_fbase == base;
}

fopru::Image gray(const fopru::Generator& generator, std::uint8_t level) {
    const std::vector<std::uint8_t> pixels(48 * 64, level);
    return generator.image(fopru_frame{FOPRU_GRAY, 48, 64, pixels.data(), 64, nullptr, 0, 0});
}

fopru::Request asking(const fopru::Image& one, const fopru::Image& other, int number) {
    fopru::Request request(number % 2 == 0 ? "What is this?" : "Count.");
    request.image(number % 3 == 0 ? one : other)
        .ratio(number % 4 == 0 ? 1 : 0.5)
        .max_new_tokens(4)
        .ignore_eos();
    return request;
}

}  // namespace

void* fopru::tests::memory_for(std::size_t bytes, void* caller) noexcept {
    if (left >= 0 && of_library(caller) && left-- == 0) {
        refused = true;
        return nullptr;
    }
    return malloced(bytes);
}

int main(int, char** arguments) {
    const fopru::Bundle bundle(arguments[1]);
    fopru::Generator generator(bundle, fopru::Options().threads(1));
    const fopru::Image one = gray(generator, 50), other = gray(generator, 200);
    std::vector<std::int64_t> wanted[12];
    for (int number = 0; number < 12; ++number) {
        generator.forget();
        wanted[number] = generator.generate(asking(one, other, number)).token_ids();
    }
    int failures = 0;
    long after = 0;
    for (int number = 0, whole = 0; whole < 12; ++after, number = (number + 5) % 12) {
        const fopru::Request request = asking(one, other, number);
        fopru_result* made = nullptr;
        refused = false;
        const fopru_status status = request.view([&](const fopru_request* own) {
            left = after;
            const fopru_status found = fopru_generate(generator.get(), own, nullptr, nullptr, &made);
            left = -1;
            return found;
        });
        fopru_result_free(made);
        whole = refused ? 0 : whole + 1;
        failures += status != FOPRU_OK;
        const bool said = status == (refused ? FOPRU_NO_MEMORY : FOPRU_OK);
        if (!said || generator.generate(request).token_ids() != wanted[number]) {
            std::fprintf(stderr, "after %ld allocations: status %d, or another answer\n", after, status);
            return 1;
        }
        if (after % 3 == 0) generator.forget();
    }
    std::printf("%d\n", failures);
    return 0;
}
