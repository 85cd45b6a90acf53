// A bundle and a backend, answering requests; every stage can also be called alone. runtime/generator.py, answer.py.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bundle/bundle.h"
#include "decode/decoder_run.h"
#include "generate/request.h"
#include "text/tokenizer.h"
#include "vision/vision.h"

namespace fopru {

struct Prompt {
    std::vector<std::int64_t> ids;  // one image id per visual token
    Positions positions;
};

struct GeneratorOptions {
    std::string backend = "onnxruntime";
    int threads = 0;
    std::string engines;                                 // TensorRT
    std::uint64_t reuse_features = std::uint64_t{256} << 20;  // bytes of visual tokens kept for later requests
    bool reuse_prefix = true;                            // the KV cache of the last answer
};

// Text as it becomes certain; false cancels the answer.
using OnText = std::function<bool(const std::string& piece)>;

// Owns the backend, the sessions and the tokenizer; shares the bundle. Not for two threads at once, but `cancel`
// may come from any thread. Two generators in two threads may share one bundle.
class Generator {
public:
    Generator(std::shared_ptr<const Bundle> bundle, const GeneratorOptions& options);
    ~Generator();

    const Bundle& bundle() const;
    Backend& backend();
    const Tokenizer& tokenizer() const;

    // The whole way. `images` are those of all turns; `encoded` stand for the first of them.
    Result generate(const Request& request, const std::vector<const PreparedImage*>& images, const OnText& on_text = {});
    void cancel();  // of the answer under way, before its next token

    // Stages.
    PreparedImage preprocess(const Image& image) const;
    std::vector<EncodedImage> encode(const std::vector<const PreparedImage*>& images, const Selection& selection);
    std::vector<EncodedImage> encode_unpruned(const std::vector<const PreparedImage*>& images);
    std::vector<std::int64_t> tokenize(const Request& request, const std::vector<const ImagePlan*>& plans) const;
    Prompt prompt(const std::vector<std::int64_t>& plain, const std::vector<EncodedImage>& images) const;
    Rows embed(const std::vector<std::int64_t>& ids, const std::vector<const Rows*>& features);
    DecoderRun& decoder_run(const std::string& graph);  // of `decoder_graphs`
    std::vector<std::string> decoder_graphs() const;    // that the backend can run, the best first; BackendError

    void warmup(const Request& request, const std::vector<const PreparedImage*>& images);
    void forget();                           // what is kept for later requests
    void release(const std::string& graph);  // close it, if open
    Session& session(const std::string& graph);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace fopru
