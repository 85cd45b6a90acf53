// The course of one request: plan, prompt, vision, prefill, then token by token. runtime/answer.py.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "generate/generator.h"
#include "generate/token_loop.h"

namespace fopru {

// Adds the time of its life to a field of `Timings`.
class StageTimer {
public:
    explicit StageTimer(double& seconds) : seconds_(seconds), start_(std::chrono::steady_clock::now()) {}
    ~StageTimer() {
        seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    StageTimer(const StageTimer&) = delete;
    StageTimer& operator=(const StageTimer&) = delete;

private:
    double& seconds_;
    std::chrono::steady_clock::time_point start_;
};

// One request on its way, holding what is known so far. Generator, request and pictures must outlive it. Each
// of `plan`, `tokenize`, `encode` may be called once, in this order; `answer` calls them all.
class AnswerRun {
public:
    using Cancelled = std::function<bool()>;  // asked before each stage and each token

    AnswerRun(Generator& generator, const Request& request, const Pictures& pictures);

    void plan();                       // how many tokens of each image stay. RequestError
    void tokenize();                   // the prompt, whose length is checked. RequestError
    void encode();                     // the images that are not encoded yet
    Prompt prompt();                   // after these: the pruned one
    Rows embed(const Prompt& prompt);  // its rows [L, D]
    Result answer(const OnText& on_text, const Cancelled& cancelled);

    const std::vector<SharedTokens>& tokens() const { return tokens_; }  // after `encode`: of all images
    std::int64_t capacity() const;  // rows of the KV cache: the last token of an answer is never fed back

private:
    void join_given(std::size_t given);
    void check_length();
    std::vector<SharedTokens> run_encoder(const FeatureCache::Images& images,
                                          const std::optional<Selection>& selection);
    void decode(const OnText& on_text, const Cancelled& cancelled);
    Result result() const;
    void count_visual_tokens(Result& result) const;

    Generator& generator_;
    const Manifest& manifest_;
    const Request& request_;
    const Pictures& pictures_;
    std::vector<SharedTokens> tokens_;
    std::vector<const ImagePlan*> plans_;
    PruningPlan pruning_;
    std::vector<std::int64_t> plain_;  // ids with one image id per run
    std::unique_ptr<TokenLoop> loop_;  // unless cancelled before
    Timings timings_;
    std::int64_t prompt_tokens_ = 0, reused_tokens_ = 0, reused_images_ = 0;
    std::uint64_t kv_allocated_ = 0;
};

}  // namespace fopru
