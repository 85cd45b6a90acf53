// What is behind the pointers of fopru.h, and how its functions end.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "fopru/fopru.h"
#include "generate/generator.h"

struct fopru_bundle {
    std::shared_ptr<const fopru::Bundle> bundle;
    std::string info;
};

namespace fopru {

// A generator and the state of its stages. `Claim` holds it for one call.
struct Worker {
    // `backend` null: that of the options.
    Worker(std::shared_ptr<const Bundle> own, const GeneratorOptions& options,
           std::unique_ptr<Backend> backend = nullptr)
        : bundle(own),
          generator(std::move(own), options, std::move(backend)),
          device(generator.backend().description()),
          on_device(generator.backend().on_device()) {}

    std::shared_ptr<const Bundle> bundle;
    Generator generator;
    const std::string device;
    const bool on_device;  // whether visual tokens are where no other generator takes them
    std::atomic<bool> busy{false};
    std::string warning;           // of the last answer or warm-up
    std::int64_t steps_left = -1;  // behind `fopru_prefill`; -1: there is none to go on from
};

}  // namespace fopru

struct fopru_generator {
    std::shared_ptr<fopru::Worker> worker;
};

struct fopru_image {
    std::shared_ptr<const fopru::Bundle> bundle;  // that it was prepared for
    fopru::PreparedImage image;
    std::int64_t tokens = 0;
    double seconds = 0.0;                   // that preparing took
    mutable std::atomic<bool> told{false};  // whether a result has counted them
};

struct fopru_encoded {
    std::shared_ptr<fopru::Worker> worker;  // whose backend has the numbers
    std::vector<fopru::SharedTokens> tokens;
    std::vector<std::vector<std::int64_t>> kept;  // by image, counted through its units
};

struct fopru_result {
    fopru::Result result;
    std::string json;
};

namespace fopru {

// Of this thread. Text beyond a few kilobytes is cut: so nothing is allocated where memory has run out.
void set_last_error(const char* message) noexcept;

fopru_status status_of_exception() noexcept;  // of the one under way, whose message becomes the last error

// Runs the body of a C function: nothing is thrown across the border.
template <class Body>
fopru_status guarded(const Body& body) noexcept {
    try {
        body();
        set_last_error("");  // also what a call from a callback has left
        return FOPRU_OK;
    } catch (...) {
        return status_of_exception();
    }
}

// The value of an argument that may not be NULL. RequestError.
template <class T>
T& need(T* pointer, const char* name) {
    if (pointer == nullptr) throw RequestError(std::string(name) + " is NULL, expected a pointer to one");
    return *pointer;
}

std::string need_text(const char* text, const char* name);  // RequestError: NULL

// Holds a generator for one call. RequestError: another call holds it.
class Claim {
public:
    explicit Claim(const fopru_generator* generator);
    ~Claim();
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    Worker& worker() const { return *worker_; }
    Generator& generator() const { return worker_->generator; }

private:
    std::shared_ptr<Worker> worker_;
};

// A request in the words of the core. RequestError: a pointer that is missing, an object of another bundle.
struct GivenRequest {
    Request request;
    Pictures pictures;
    std::vector<const fopru_image*> images;  // of the pictures that are prepared
};
// `encoded` stands for that of the request where it is not NULL. With `whole` false, what only a prompt needs
// is not read.
GivenRequest given_request(const Worker& worker, const fopru_request* request, const fopru_encoded* encoded,
                           bool whole = true);

// The first `size` bytes of the caller's struct over the defaults. RequestError: no size, or one that is not
// known.
void check_size(std::size_t size, std::size_t known, const char* name);

// Values, or their number alone where they do not fit.
void give(const std::vector<std::int64_t>& values, std::int64_t* out, std::size_t& count);

}  // namespace fopru
