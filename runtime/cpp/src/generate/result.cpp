#include <sys/resource.h>

#include <utility>

#include "generate/request.h"

namespace fopru {

namespace {

Json listed(const std::vector<std::int64_t>& values) { return Json::Array(values.begin(), values.end()); }

Json counted(std::uint64_t bytes) { return static_cast<std::int64_t>(bytes); }

// Members are moved in: a list in braces would copy every value.
class Members {
public:
    Members& add(const char* key, Json value) {
        members_.emplace_back(key, std::move(value));
        return *this;
    }
    Json taken() { return std::move(members_); }

private:
    Json::Object members_;
};

Json to_json(const Timings& timings) {
    return Members()
        .add("load", timings.load)
        .add("preprocess", timings.preprocess)
        .add("vision", timings.vision)
        .add("embed", timings.embed)
        .add("prefill", timings.prefill)
        .add("decode", timings.decode)
        .add("ttft", timings.ttft())
        .add("total", timings.total())
        .taken();
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
    return Members()
        .add("text", result.text)
        .add("token_ids", listed(result.token_ids))
        .add("finish_reason", result.finish_reason)
        .add("prompt_tokens", result.prompt_tokens)
        .add("visual_tokens_before", listed(result.visual_tokens_before))
        .add("visual_tokens_after", listed(result.visual_tokens_after))
        .add("kept_indices", std::move(kept))
        .add("pruned", result.pruned)
        .add("reason", result.reason ? Json(*result.reason) : Json())
        .add("timings", to_json(result.timings))
        .add("kv_bytes", counted(result.kv_bytes))
        .add("kv_bytes_unpruned", counted(result.kv_bytes_unpruned))
        .add("kv_bytes_allocated", counted(result.kv_bytes_allocated))
        .add("peak_rss_bytes", counted(result.peak_rss_bytes))
        .add("reused_tokens", result.reused_tokens)
        .add("reused_images", result.reused_images)
        .add("tokens_per_second", speed ? Json(*speed) : Json())
        .taken();
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
