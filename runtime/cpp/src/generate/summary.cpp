#include <cstdio>
#include <numeric>

#include "generate/request.h"

namespace fopru {

namespace {

std::string fixed(double value, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

std::string milliseconds(double seconds) { return fixed(seconds * 1e3, 0); }

std::string size_of(std::uint64_t bytes) {
    constexpr double kib = 1024, mib = 1024 * 1024;
    const auto count = static_cast<double>(bytes);
    return count >= mib ? fixed(count / mib, 1) + " MiB" : fixed(count / kib, 1) + " KiB";
}

std::string arrow(std::int64_t before, std::int64_t after) {
    return std::to_string(before) + " → " + std::to_string(after);
}

std::string counts(const Result& result) {
    const auto &before = result.visual_tokens_before, &after = result.visual_tokens_after;
    const std::size_t images = after.size();
    if (images == 0) return "none";
    const std::string text = arrow(std::accumulate(before.begin(), before.end(), std::int64_t{0}),
                                   std::accumulate(after.begin(), after.end(), std::int64_t{0}));
    if (images == 1) return text;
    bool same = true;
    std::string pairs;
    for (std::size_t i = 0; i < images; ++i) {
        same = same && before[i] == before[0] && after[i] == after[0];
        pairs += (i == 0 ? "" : ", ") + arrow(before[i], after[i]);
    }
    const std::string number = " (" + std::to_string(images) + " images";
    return text + number + (same ? ", " + arrow(before[0], after[0]) + " each)" : ": " + pairs + ")");
}

std::string prompt(const Result& result) {
    const std::string text = std::to_string(result.prompt_tokens) + " tokens";
    if (result.reused_tokens == 0) return text;
    return text + ", " + std::to_string(result.reused_tokens) + " of them from the KV cache";
}

std::string first_token(const Timings& times) {
    return milliseconds(times.ttft()) + " ms = preprocess " + milliseconds(times.preprocess) + " + vision " +
           milliseconds(times.vision) + " + embed " + milliseconds(times.embed) + " + prefill " +
           milliseconds(times.prefill) + "   (graphs loaded in " + milliseconds(times.load) + " ms)";
}

std::string speed(const Result& result) {
    const std::string text =
        std::to_string(result.token_ids.size()) + " tokens (" + result.finish_reason + ")";
    const std::optional<double> rate = result.tokens_per_second();
    return rate ? text + ", " + fixed(*rate, 1) + " tokens/s" : text;
}

}  // namespace

std::vector<std::string> summary_lines(const Result& result) {
    std::vector<std::string> lines = {
        "visual tokens   " + counts(result),
        "prompt          " + prompt(result),
        "first token     " + first_token(result.timings),
        "answer          " + speed(result),
        "KV cache        " + size_of(result.kv_bytes) + " (" + size_of(result.kv_bytes_unpruned) +
            " without pruning), " + size_of(result.kv_bytes_allocated) + " allocated",
        "peak memory     " + size_of(result.peak_rss_bytes),
    };
    if (!result.pruned) {
        lines.insert(lines.begin() + 1, "not pruned      " + result.reason.value_or(""));
    }
    return lines;
}

}  // namespace fopru
