// One decoding step with shapes that stay, so that a device may record it and replay it for less.
// runtime/step_graph.py.
//
// The past grows with every token, and a recorded run has fixed shapes. So the past is bound longer than it
// is, in blocks of 256 rows, and the mask is zero behind its valid rows: the decoder gives these the weight
// 0, which leaves the logits as they are but for the order of sums. The new rows come out beside the cache
// and are copied into it after the step: one copy for all tensors.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "decode/decoder_run.h"
#include "decode/stacked_cache.h"

namespace fopru {

// What a step reads and writes besides its cache.
struct StepTensors {
    View token;      // int64 [1, 1]
    View embedding;  // [1, 1, D]
    View logits;     // [1, 1, V]
    View count;      // int64 []: the number of logits
    int axes = 1;    // of the positions
};

// Runs steps of one cache of one capacity. Owns mask, position and bindings; backend, sessions, cache and the
// buffers of the tensors must outlive it. Once the step of a block was recorded, running it allocates
// nothing.
class PaddedStep {
public:
    PaddedStep(Backend& backend, const DecoderGraphs& graphs, StackedCache& cache,
               const StepTensors& tensors);

    void prepare();  // record the steps from the length of the cache up to its capacity
    // The step of the token that was uploaded, at this position on every axis; the cache has one row more
    // afterwards. RequestError: the cache is full.
    void run(std::int64_t position);
    // Why steps are not recorded, and so are slower; empty where they are, or none was made.
    const std::string& refusal() const { return refusal_; }

private:
    struct Step {
        std::unique_ptr<Binding> embed, decoder;
        std::unique_ptr<Recorded> recorded;  // before the bindings go
    };
    std::int64_t block(std::int64_t length) const;
    void show(std::int64_t length, std::int64_t block);
    Step& step(std::int64_t block);
    void note(const Recorded& recorded);  // its refusal

    Backend& backend_;
    const DecoderGraphs graphs_;
    StackedCache& cache_;
    const StepTensors tensors_;
    const std::int64_t limit_;
    std::unique_ptr<Buffer> mask_, position_;
    std::vector<std::int64_t> shown_, positions_;  // what the two hold
    std::int64_t shown_length_ = -1, shown_block_ = -1;
    std::map<std::int64_t, Step> steps_;  // by rows of the past that is bound
    std::string refusal_;
};

std::int64_t longest_past(const Session& decoder);  // rows that a decoder takes, where it says so

}  // namespace fopru
