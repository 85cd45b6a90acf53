// What `run`, `check`, `bench` have in common: how a bundle is opened, and images are read.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "bundle/bundle.h"
#include "generate/generator.h"

namespace fopru::cli {

// Options of the device; each holds for the whole command.
struct DeviceOptions {
    std::string backend = GeneratorOptions().backend;
    std::string engines = GeneratorOptions().engines;
    std::optional<std::int64_t> threads;

    void declare(std::vector<Option>& options);  // which point into this
    GeneratorOptions generator() const;          // BackendError: threads out of range
};

// Options of a request; defaults are those of `Request`.
struct RequestOptions {
    Request request;

    void declare_length(std::vector<Option>& options);
    void declare_pruning(std::vector<Option>& options);
    void declare_sampling(std::vector<Option>& options);
};

using SharedImage = std::shared_ptr<const PreparedImage>;
SharedImage read_prepared(const Generator& generator, const std::string& path);  // ImageError

// Says on stderr why answers were slower than they could be, where there is a reason.
void show_warning(const Generator& generator);

// Pointers to images, which must outlive it; `seconds` that preparing took.
Pictures pictures_of(const std::vector<SharedImage>& images, double seconds);

class Stopwatch {
public:
    Stopwatch();
    double seconds() const;  // since it was made

private:
    std::int64_t start_;  // nanoseconds
};

}  // namespace fopru::cli
