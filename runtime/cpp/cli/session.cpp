#include "session.h"

#include <chrono>

#include "base/error.h"
#include "base/python_text.h"
#include "output.h"
#include "pruning/pruning.h"

namespace fopru::cli {
namespace {

constexpr std::int64_t most_threads = 1024;  // as `make_backend`, where 0 is none

std::int64_t now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

}  // namespace

void DeviceOptions::declare(std::vector<Option>& options) {
    options.push_back({"--backend", &backend, "NAME", "one of " + joined(built_backends())});
    options.push_back(
        {"--engines", &engines, "DIR", "TensorRT: folder of engines; without it the bundle's own"});
    options.push_back({"--threads", &threads, "N", "threads inside one operator (default: all cores)"});
}

GeneratorOptions DeviceOptions::generator() const {
    GeneratorOptions options;
    options.backend = backend;
    options.engines = engines;
    if (!threads) return options;
    if (*threads < 1 || *threads > most_threads) {
        throw BackendError("threads is " + std::to_string(*threads) + ", expected 1.." +
                           std::to_string(most_threads) + ", or none for all cores");
    }
    options.threads = static_cast<int>(*threads);
    return options;
}

void RequestOptions::declare_length(std::vector<Option>& options) {
    options.push_back({"--max-new-tokens", &request.max_new_tokens, "N", "length limit of the answer"});
}

void RequestOptions::declare_pruning(std::vector<Option>& options) {
    options.push_back({"--ratio", &request.ratio, "R", "fraction of visual tokens KEPT, in (0, 1]"});
    options.push_back({"--tokens", &request.tokens, "N", "visual tokens KEPT per image"});
    options.push_back({"--selector", &request.selector, "NAME",
                       "who chooses the tokens: graph, none, " + joined(host_selectors())});
}

void RequestOptions::declare_sampling(std::vector<Option>& options) {
    Sampling& sampling = request.sampling;
    options.push_back({"--repetition-penalty", &sampling.repetition_penalty, "R",
                       "divide the logits of tokens already there by R; 1 is off"});
    options.push_back(
        {"--temperature", &sampling.temperature, "T", "0 is greedy; the next three are for draws"});
    options.push_back({"--top-k", &sampling.top_k, "K", "draw from the K likeliest tokens; 0 is off"});
    options.push_back(
        {"--top-p", &sampling.top_p, "P", "draw from the likeliest tokens that reach P; 1 is off"});
    options.push_back({"--min-p", &sampling.min_p, "P",
                       "draw from tokens at least P times as likely as the likeliest; 0 is off"});
    options.push_back({"--stop", &request.stop, "TEXT", "end the answer before TEXT; repeatable"});
    options.push_back({"--seed", &sampling.seed, "S", "of sampling and of the selector random"});
}

SharedImage read_prepared(const Generator& generator, const std::string& path) {
    return std::make_shared<const PreparedImage>(generator.preprocess(read_image(path)));
}

void show_warning(const Generator& generator) {
    if (!generator.warning().empty()) write_error("warning: " + generator.warning() + "\n");
}

Pictures pictures_of(const std::vector<SharedImage>& images, double seconds) {
    Pictures pictures;
    for (const SharedImage& image : images) pictures.prepared.push_back(image.get());
    pictures.seconds = seconds;
    return pictures;
}

Stopwatch::Stopwatch() : start_(now()) {}

double Stopwatch::seconds() const { return static_cast<double>(now() - start_) * 1e-9; }

}  // namespace fopru::cli
