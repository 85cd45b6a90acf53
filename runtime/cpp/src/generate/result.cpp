#include <sys/resource.h>

#include "generate/request.h"

namespace fopru {

namespace {

Json listed(const std::vector<std::int64_t>& values) { return Json::Array(values.begin(), values.end()); }

Json counted(std::uint64_t bytes) { return static_cast<std::int64_t>(bytes); }

Json to_json(const Timings& timings) {
    return Json::Object{{"load", timings.load},       {"preprocess", timings.preprocess},
                        {"vision", timings.vision},   {"embed", timings.embed},
                        {"prefill", timings.prefill}, {"decode", timings.decode},
                        {"ttft", timings.ttft()},     {"total", timings.total()}};
}

}  // namespace

std::optional<double> Result::tokens_per_second() const {
    if (token_ids.size() < 2 || timings.decode <= 0.0) return std::nullopt;
    return static_cast<double>(token_ids.size() - 1) / timings.decode;
}

Json to_json(const Result& result) {
    Json::Array kept;
    for (const auto& indices : result.kept_indices) kept.push_back(listed(indices));
    const std::optional<double> speed = result.tokens_per_second();
    return Json::Object{{"text", result.text},
                        {"token_ids", listed(result.token_ids)},
                        {"finish_reason", result.finish_reason},
                        {"prompt_tokens", result.prompt_tokens},
                        {"visual_tokens_before", listed(result.visual_tokens_before)},
                        {"visual_tokens_after", listed(result.visual_tokens_after)},
                        {"kept_indices", std::move(kept)},
                        {"pruned", result.pruned},
                        {"reason", result.reason ? Json(*result.reason) : Json()},
                        {"timings", to_json(result.timings)},
                        {"kv_bytes", counted(result.kv_bytes)},
                        {"kv_bytes_unpruned", counted(result.kv_bytes_unpruned)},
                        {"kv_bytes_allocated", counted(result.kv_bytes_allocated)},
                        {"peak_rss_bytes", counted(result.peak_rss_bytes)},
                        {"reused_tokens", result.reused_tokens},
                        {"reused_images", result.reused_images},
                        {"tokens_per_second", speed ? Json(*speed) : Json()}};
}

std::uint64_t peak_rss_bytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
    return static_cast<std::uint64_t>(usage.ru_maxrss);
#else
    return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;  // kilobytes everywhere but on macOS
#endif
}

}  // namespace fopru
