// What a caller asks for, and what an answer comes with: runtime/request.py, runtime/result.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace fopru {

struct Sampling {
    double temperature = 0.0;
    std::int64_t top_k = 0;
    double top_p = 1.0;
    double min_p = 0.0;
    double repetition_penalty = 1.0;
    std::uint64_t seed = 0;
};

// Images are indices into the list that goes with the request: the first turn's first.
struct PastTurn {
    std::string prompt;
    std::size_t images = 0;
    std::string answer;
};

struct Request {
    std::string prompt;
    std::size_t images = 0;  // of the last turn
    std::vector<PastTurn> history;
    std::optional<double> ratio;
    std::optional<std::int64_t> tokens;
    std::string selector = "graph";
    std::int64_t max_new_tokens = 64;
    Sampling sampling;
    std::vector<std::string> stop;
    bool ignore_eos = false;

    void check() const;  // RequestError, as `Request.__post_init__`
    std::size_t all_images() const;
};

// Seconds; see `Timings` in runtime/result.py for what each holds.
struct Timings {
    double load = 0, preprocess = 0, vision = 0, embed = 0, prefill = 0, decode = 0;
    double ttft() const { return preprocess + vision + embed + prefill; }
    double total() const { return load + ttft() + decode; }
};

struct Result {
    std::string text;
    std::vector<std::int64_t> token_ids;
    std::string finish_reason;  // "eos", "stop", "length", "cancelled"
    std::int64_t prompt_tokens = 0;
    std::vector<std::int64_t> visual_tokens_before, visual_tokens_after;  // per image
    std::vector<std::vector<std::int64_t>> kept_indices;  // per image, counted through its units
    bool pruned = false;
    std::optional<std::string> reason;
    Timings timings;
    std::uint64_t kv_bytes = 0, kv_bytes_unpruned = 0, kv_bytes_allocated = 0, peak_rss_bytes = 0;
    std::int64_t reused_tokens = 0, reused_images = 0;

    // Of decoding, the first token not counted; none for an answer of one token.
    std::optional<double> tokens_per_second() const;
};

Json to_json(const Result& result);                            // keys and order of `Result.to_dict()`
std::vector<std::string> summary_lines(const Result& result);  // for people: runtime/summary.py
std::uint64_t peak_rss_bytes();                                // of this process so far

}  // namespace fopru
