#include "requests.h"

#include <deque>
#include <map>

namespace fopru::probe {

namespace {

// A request of a line, and all that it points to.
class Asked {
public:
    Asked(fopru_generator* generator, const Json& line) : generator_(generator) {
        for (const Json& turn : list(line, "history")) add_turn(items(turn));
        images_ = prepared(list(line, "images"));
        for (const Json& stop : list(line, "stop")) stops_.push_back(keep(text(stop)));
        request.prompt = keep(text(member(line, "prompt")));
        request.images = images_.data();
        request.image_count = images_.size();
        request.history = turns_.data();
        request.history_count = turns_.size();
        request.stop = stops_.data();
        request.stop_count = stops_.size();
        set_numbers(line);
    }

    fopru_request request = fopru_request_default();

private:
    static Json::Array list(const Json& line, const char* name) {
        const Json* found = line.find(name);
        return found ? items(*found) : Json::Array();
    }

    void add_turn(const Json::Array& turn) {
        turn_images_.push_back(prepared(items(turn[1])));
        const auto& images = turn_images_.back();
        turns_.push_back({keep(text(turn[0])), images.data(), images.size(), keep(text(turn[2]))});
    }

    std::vector<const fopru_image*> prepared(const Json::Array& paths) {
        std::vector<const fopru_image*> images;
        for (const Json& path : paths) {
            fopru_image* image = nullptr;
            check(fopru_image_from_file(generator_, text(path).c_str(), &image));
            owned_.emplace_back(image, fopru_image_free);
            images.push_back(image);
        }
        return images;
    }

    const char* keep(const std::string& value) { return texts_.emplace_back(value).c_str(); }

    void set_numbers(const Json& line) {
        std::map<std::string, double*> reals = {{"ratio", &request.ratio},
                                                {"temperature", &request.temperature},
                                                {"top_p", &request.top_p},
                                                {"min_p", &request.min_p},
                                                {"repetition_penalty", &request.repetition_penalty}};
        std::map<std::string, std::int64_t*> wholes = {{"tokens", &request.tokens},
                                                       {"max_new_tokens", &request.max_new_tokens},
                                                       {"top_k", &request.top_k}};
        for (const auto& [name, value] : *line.object()) {
            if (reals.count(name)) *reals[name] = real(value);
            if (wholes.count(name)) *wholes[name] = whole(value);
            if (name == "seed") request.seed = static_cast<std::uint64_t>(whole(value));
            if (name == "selector") request.selector = keep(text(value));
            if (name == "ignore_eos") request.ignore_eos = *value.boolean();
        }
    }

    fopru_generator* generator_;
    std::deque<std::string> texts_;
    std::deque<std::vector<const fopru_image*>> turn_images_;
    std::vector<Freed<fopru_image>> owned_;
    std::vector<const fopru_image*> images_;
    std::vector<fopru_turn> turns_;
    std::vector<const char*> stops_;
};

struct Heard {
    Json::Array pieces;
    std::int64_t most = -1;  // pieces until it cancels
};

int hear(const char* piece, std::size_t length, void* user) {
    auto& heard = *static_cast<Heard*>(user);
    heard.pieces.emplace_back(std::string(piece, length));
    return static_cast<std::int64_t>(heard.pieces.size()) == heard.most;
}

Json generated(fopru_generator* generator, const Asked& asked, const Json& line) {
    Heard heard;
    if (const Json* most = line.find("cancel_after")) heard.most = whole(*most);
    fopru_result* result = nullptr;
    check(fopru_generate(generator, &asked.request, hear, &heard, &result));
    const Freed<fopru_result> owned(result, fopru_result_free);
    Json::Object record = {{"result", parse_json(fopru_result_json(result), "a result")},
                           {"pieces", heard.pieces}};
    const std::string warning = fopru_generator_warning(generator);
    if (!warning.empty()) record.emplace_back("warning", warning);
    return record;
}

// The same answer from visual tokens that were encoded before.
Json from_encoded(fopru_generator* generator, Asked& asked, const Json& line) {
    fopru_encoded* encoded = nullptr;
    check(fopru_encode(generator, &asked.request, &encoded));
    const Freed<fopru_encoded> owned(encoded, fopru_encoded_free);
    asked.request.encoded = encoded;
    asked.request.images = nullptr;
    return generated(generator, asked, line);
}

// Greedy, stage by stage: prompt ids, tokens, the last kept positions.
Json staged(fopru_generator* generator, const Asked& asked) {
    fopru_encoded* encoded = nullptr;
    check(fopru_encode(generator, &asked.request, &encoded));
    const Freed<fopru_encoded> owned(encoded, fopru_encoded_free);
    std::size_t count = 0;
    check(fopru_prompt_ids(generator, &asked.request, encoded, nullptr, &count));
    std::vector<std::int64_t> ids(count), tokens;
    check(fopru_prompt_ids(generator, &asked.request, encoded, ids.data(), &count));
    const float* logits = nullptr;
    std::int64_t vocabulary = 0, rows = 0, width = 0;
    check(fopru_prefill(generator, &asked.request, encoded, &logits, &vocabulary));
    while (true) {
        std::int64_t best = 0;
        for (std::int64_t id = 1; id < vocabulary; ++id) best = logits[id] > logits[best] ? id : best;
        tokens.push_back(best);
        if (static_cast<std::int64_t>(tokens.size()) == asked.request.max_new_tokens) break;
        check(fopru_step(generator, best, &logits));
    }
    check(fopru_encoded_features(encoded, nullptr, &rows, &width));
    std::vector<float> features(static_cast<std::size_t>(rows * width));
    check(fopru_encoded_features(encoded, features.data(), &rows, &width));
    double sum = 0.0;
    for (const float value : features) sum += value;
    return Json::Object{{"ids", list_of(ids)}, {"tokens", list_of(tokens)}, {"rows", rows}, {"sum", sum}};
}

Json answer(fopru_generator* generator, const Json& line) {
    const std::string& op = text(member(line, "op"));
    if (op == "forget") {
        check(fopru_generator_forget(generator));
        return {};
    }
    if (op == "release") {
        check(fopru_generator_release(generator, text(member(line, "graph")).c_str()));
        return {};
    }
    Asked asked(generator, line);
    if (op == "warmup") {
        check(fopru_warmup(generator, &asked.request));
        return {};
    }
    if (op == "encoded") return from_encoded(generator, asked, line);
    return op == "stages" ? staged(generator, asked) : generated(generator, asked, line);
}

}  // namespace

void check(fopru_status status) {
    if (status != FOPRU_OK) throw Failed{status};
}

Generator opened(const char* path, const fopru_options& options) {
    fopru_bundle* bundle = nullptr;
    fopru_generator* generator = nullptr;
    check(fopru_bundle_open(path, FOPRU_VERIFY, &bundle));
    const Freed<fopru_bundle> owned(bundle, fopru_bundle_free);
    check(fopru_generator_create(bundle, &options, &generator));
    return {generator, fopru_generator_free};  // which keeps the bundle
}

Json answered(fopru_generator* generator, const Json& line) {
    try {
        return answer(generator, line);
    } catch (const Failed& failed) {
        return Json::Object{{"status", static_cast<int>(failed.status)}, {"message", fopru_last_error()}};
    }
}

}  // namespace fopru::probe
