// `fopru bench`: the same question at several ratios by turns, so that what the machine does meanwhile meets
// all alike.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "base/error.h"
#include "base/python_text.h"
#include "commands.h"
#include "output.h"
#include "session.h"

namespace fopru::cli {
namespace {

constexpr const char* stage_names[] = {"preprocess", "vision", "embed", "prefill"};

struct BenchOptions {
    std::string bundle;
    std::vector<std::string> images;
    std::optional<std::string> prompt;
    std::vector<double> ratios = {1.0, 0.3, 0.1};
    std::int64_t rounds = 5;
    RequestOptions request;
    DeviceOptions device;
    bool json = false, no_verify = false;

    Command command() {
        Command found{
            "bench",
            "Time to first token, speed and memory at several ratios, asked by turns after a warm-up.\n"
            "Medians over the rounds; nothing is kept from one request to the next.",
            &bundle,
            {}};
        std::vector<Option>& options = found.options;
        options.push_back({"--image", &images, "FILE", "an image; may be given several times"});
        options.push_back({"--prompt", &prompt, "TEXT", "the question (required)"});
        options.push_back({"--ratios", &ratios, "R,R", "fractions of visual tokens KEPT, each in (0, 1]"});
        options.push_back({"--rounds", &rounds, "N", "answers at each ratio"});
        request.declare_length(options);
        options.push_back({"--json", &json, "", "print one JSON object"});
        device.declare(options);
        options.push_back({"--no-verify", &no_verify, "", "skip the SHA-256 of the files"});
        return found;
    }
};

// What was measured at one ratio, a value per round.
struct Samples {
    double ratio = 1.0;
    Result last;
    std::map<std::string, std::vector<double>> seconds;  // by stage, "ttft" and "total" too
    std::vector<double> speeds;                          // tokens/s
};

double median(std::vector<double> values) {
    if (values.empty()) return std::nan("");
    const std::size_t middle = values.size() / 2;
    std::sort(values.begin(), values.end());
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void add_sample(Samples& samples, Result result) {
    const Timings& times = result.timings;
    for (const auto& [name, value] :
         {std::pair("preprocess", times.preprocess), std::pair("vision", times.vision),
          std::pair("embed", times.embed), std::pair("prefill", times.prefill),
          std::pair("decode", times.decode), std::pair("ttft", times.ttft())}) {
        samples.seconds[name].push_back(value);
    }
    if (const auto speed = result.tokens_per_second()) samples.speeds.push_back(*speed);
    samples.last = std::move(result);
}

// How many times the first ratio's median; above 1 is faster for speeds, slower for seconds. None without
// both.
Json times_first(double first, double own) {
    return first > 0.0 && own > 0.0 ? Json(own / first) : Json(nullptr);
}

Json to_json(Samples& samples, Samples& first) {
    Json::Object seconds;
    for (const auto& [name, values] : samples.seconds) seconds.emplace_back(name, median(values));
    const double speed = median(samples.speeds), ttft = median(samples.seconds["ttft"]);
    Json::Array before, after;
    for (const std::int64_t count : samples.last.visual_tokens_before) before.emplace_back(count);
    for (const std::int64_t count : samples.last.visual_tokens_after) after.emplace_back(count);
    return Json(Json::Object{{"ratio", samples.ratio},
                             {"visual_tokens_before", Json(std::move(before))},
                             {"visual_tokens_after", Json(std::move(after))},
                             {"prompt_tokens", samples.last.prompt_tokens},
                             {"new_tokens", static_cast<std::int64_t>(samples.last.token_ids.size())},
                             {"seconds", Json(std::move(seconds))},
                             {"tokens_per_second", std::isfinite(speed) ? Json(speed) : Json(nullptr)},
                             {"kv_bytes", static_cast<std::int64_t>(samples.last.kv_bytes)},
                             {"ttft_to_first", times_first(median(first.seconds["ttft"]), ttft)},
                             {"tokens_per_second_to_first", times_first(median(first.speeds), speed)}});
}

std::string cell(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return std::isfinite(value) ? text : "-";
}

std::string right(const std::string& text, std::size_t width) {
    return text.size() < width ? std::string(width - text.size(), ' ') + text : text;
}

std::int64_t sum_of(const std::vector<std::int64_t>& counts) {
    std::int64_t sum = 0;
    for (const std::int64_t count : counts) sum += count;
    return sum;
}

std::string table_of(std::vector<Samples>& all) {
    std::string text = right("ratio", 6) + right("tokens", 8) + right("prompt", 8);
    for (const char* name : stage_names) text += right(name, 12);
    text += right("ttft ms", 10) + right("times", 7) + right("tokens/s", 10) + right("times", 7) + "\n";
    const double first_ttft = median(all.front().seconds["ttft"]), first_speed = median(all.front().speeds);
    for (Samples& each : all) {
        text += right(printed_number(each.ratio), 6) +
                right(std::to_string(sum_of(each.last.visual_tokens_after)), 8) +
                right(std::to_string(each.last.prompt_tokens), 8);
        for (const char* name : stage_names)
            text += right(cell("%.2f", median(each.seconds[name]) * 1e3), 12);
        const double ttft = median(each.seconds["ttft"]), speed = median(each.speeds);
        text += right(cell("%.2f", ttft * 1e3), 10) + right(cell("%.2f", ttft / first_ttft), 7) +
                right(cell("%.1f", speed), 10) + right(cell("%.2f", speed / first_speed), 7) + "\n";
    }
    return text;
}

class Bench {
public:
    Bench(const BenchOptions& options, Generator& generator) : options_(options), generator_(generator) {
        for (const double ratio : options.ratios) {
            all_.emplace_back();
            all_.back().ratio = ratio;
        }
    }

    // False where Ctrl-C ended it.
    bool run() {
        const AnswerGuard guard(generator_);
        for (const Samples& each : all_) {  // warm-up
            ask(each.ratio, guard);
            if (guard.interrupted()) return false;
        }
        for (std::int64_t round = 0; round < options_.rounds; ++round) {
            for (Samples& each : all_) {
                Result result = ask(each.ratio, guard);
                if (guard.interrupted()) return false;
                add_sample(each, std::move(result));
            }
        }
        return true;
    }

    std::vector<Samples>& all() { return all_; }

private:
    Result ask(double ratio, const AnswerGuard& guard) {
        Request request = options_.request.request;
        request.prompt = *options_.prompt;
        request.images = options_.images.size();
        request.ratio = ratio;
        request.ignore_eos = true;
        const Stopwatch watch;
        std::vector<SharedImage> images;
        for (const std::string& path : options_.images) images.push_back(read_prepared(generator_, path));
        if (guard.interrupted()) return {};  // what began before the answer does not cancel it
        return generator_.generate(request, pictures_of(images, watch.seconds()));
    }

    const BenchOptions& options_;
    Generator& generator_;
    std::vector<Samples> all_;
};

void check_options(const BenchOptions& options) {
    if (!options.prompt) throw RequestError("there is no --prompt: give one");
    if (options.rounds < 1) {
        throw RequestError("rounds is " + std::to_string(options.rounds) + ", expected at least 1");
    }
    Request request = options.request.request;
    request.prompt = *options.prompt;
    for (const double ratio : options.ratios) {
        request.ratio = ratio;
        request.check();
    }
}

Json record_of(Bench& bench, Generator& generator, const BenchOptions& options) {
    Json::Array rows;
    for (Samples& each : bench.all()) rows.push_back(to_json(each, bench.all().front()));
    return Json(Json::Object{{"bundle", generator.bundle().path()},
                             {"backend", options.device.backend},
                             {"device", generator.backend().description()},
                             {"rounds", options.rounds},
                             {"max_new_tokens", options.request.request.max_new_tokens},
                             {"ratios", Json(std::move(rows))},
                             {"peak_rss_bytes", static_cast<std::int64_t>(peak_rss_bytes())}});
}

}  // namespace

int bench_command(const Arguments& arguments) {
    BenchOptions options;
    if (const auto help = parse(options.command(), arguments)) {
        write_out(*help);
        return code_done;
    }
    check_options(options);
    const auto bundle = Bundle::open(options.bundle, !options.no_verify);
    GeneratorOptions made = options.device.generator();
    made.reuse_features = 0;
    made.reuse_prefix = false;
    Generator generator(bundle, made);
    Bench bench(options, generator);
    if (!bench.run()) {
        write_error("\n");
        return code_interrupted;
    }
    show_warning(generator);
    if (options.json) {
        write_out(record_of(bench, generator, options).dump(2) + "\n");
        return code_done;
    }
    write_out(bundle->path() + ": " + generator.backend().description() + ", medians of " +
              std::to_string(options.rounds) + " rounds, stages in ms\n" + table_of(bench.all()) +
              "peak memory " + cell("%.1f", static_cast<double>(peak_rss_bytes()) / (1 << 20)) + " MiB\n");
    return code_done;
}

}  // namespace fopru::cli
