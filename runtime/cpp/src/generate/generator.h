// A bundle and a backend, answering requests; every stage can also be called alone. runtime/generator.py.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bundle/bundle.h"
#include "decode/decoder_run.h"
#include "generate/feature_cache.h"
#include "generate/prefix.h"
#include "generate/request.h"
#include "text/tokenizer.h"
#include "vision/vision.h"

namespace fopru {

struct Prompt {
    std::vector<std::int64_t> ids;  // one image id per visual token
    Positions positions;
};

// The images of all turns of a request, in order: the first are encoded already, the others prepared.
// Prepared ones must outlive the call.
struct Pictures {
    std::vector<SharedTokens> encoded;
    std::vector<const PreparedImage*> prepared;
    double seconds = 0.0;  // that preparing took, for the result
};

struct GeneratorOptions {
    std::string backend = "onnxruntime";
    int threads = 0;
    std::string engines;  // TensorRT
    std::uint64_t reuse_features = std::uint64_t{256}
                                   << 20;  // bytes of visual tokens kept for later requests
    bool reuse_prefix = true;              // the KV cache of the last answer
};

// Text as it becomes certain; false cancels the answer, and it is not called again then.
using OnText = std::function<bool(const std::string& piece)>;

// A run whose cache holds the first `reused` rows of a prompt: `prefill` wants the others.
struct Start {
    DecoderRun* run = nullptr;
    std::int64_t reused = 0;
    PromptRows rows;
};

// Owns the backend, the sessions and the tokenizer; shares the bundle. Not for two threads at once, but
// `cancel` may come from any thread. Two generators in two threads may share one bundle. Visual tokens must
// not outlive the generator that made them, nor go to another one.
class Generator {
public:
    Generator(std::shared_ptr<const Bundle> bundle, const GeneratorOptions& options);
    // With a backend of the caller's: for tests.
    Generator(std::shared_ptr<const Bundle> bundle, const GeneratorOptions& options,
              std::unique_ptr<Backend> backend);
    ~Generator();

    const Bundle& bundle() const;
    const Manifest& manifest() const;
    Backend& backend();
    const Tokenizer& tokenizer() const;

    // The whole way.
    Result generate(const Request& request, const Pictures& pictures, const OnText& on_text = {});
    void cancel() noexcept;  // the answer under way, before its next token; from a signal handler too
    // Visual tokens as `generate` would make them, for later requests about the same images.
    std::vector<SharedTokens> encode_all(const Request& request, const Pictures& pictures);
    void warmup(const Request& request, const Pictures& pictures);
    // Why answers so far were slower than they could be; empty where nothing is to be said.
    const std::string& warning() const;

    // Stages.
    PreparedImage preprocess(const Image& image) const;
    std::vector<EncodedImage> encode(const std::vector<const PreparedImage*>& images,
                                     const Selection& selection);
    std::vector<EncodedImage> encode_unpruned(const std::vector<const PreparedImage*>& images);
    std::string vision_graph(const Selection& selection) const;  // that `encode` runs
    std::vector<std::int64_t> tokenize(const Request& request,
                                       const std::vector<const ImagePlan*>& plans) const;
    Prompt prompt(const std::vector<std::int64_t>& plain,
                  const std::vector<const EncodedImage*>& images) const;
    // Embeddings [L, D] of ids, visual tokens at their placeholders. RequestError: another number of them.
    Rows embed(const std::vector<std::int64_t>& ids, const std::vector<const Rows*>& features);
    // The run of a graph of `decoder_graphs`, to `prepare` for a prompt. There is one at a time: valid until
    // the next answer, `forget`, or a run of another graph.
    DecoderRun& decoder_run(const std::string& graph);
    const std::vector<std::string>& decoder_graphs() const;  // that the backend can run, the best first

    // A run with room for `capacity` rows: the last one, where the prompt begins as its prompt did, or a
    // fresh one.
    Start start_run(std::int64_t capacity, const Prompt& prompt, const std::vector<SharedTokens>& images);
    void end_run(Start start, const std::vector<std::int64_t>& fed);  // after an answer in order
    void drop_run() noexcept;                                         // after one that failed
    FeatureCache& features();

    void forget();                               // what is kept for later requests
    void release(const std::string& graph);      // close it, if open; RequestError: there is none
    Session& session(const std::string& graph);  // opened on first use. BundleError, BackendError

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace fopru
