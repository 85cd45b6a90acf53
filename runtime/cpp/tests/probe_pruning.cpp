// Counts, selectors, assembly, positions and prompts on JSON lines; "op" names the function. An image is
// {"layout", "size"}: its plan is made here.
#include <map>

#include "layout/layout.h"
#include "probe_lines.h"
#include "pruning/pruning.h"

using namespace fopru;
using namespace fopru::probe;

namespace {

ImagePlan plan_of(const Json& image) {
    const auto size = wholes(member(image, "size"));
    return make_layout(member(image, "layout"))
        ->plan(static_cast<int>(size.at(0)), static_cast<int>(size.at(1)));
}

std::vector<ImagePlan> plans_of(const Json& images) {
    std::vector<ImagePlan> plans;
    for (const auto& image : items(images)) plans.push_back(plan_of(image));
    return plans;
}

std::vector<const ImagePlan*> pointers(const std::vector<ImagePlan>& plans) {
    std::vector<const ImagePlan*> found;
    for (const auto& plan : plans) found.push_back(&plan);
    return found;
}

std::vector<float> floats(const Json& json) {
    std::vector<float> values;
    for (const auto& item : items(json)) values.push_back(static_cast<float>(real(item)));
    return values;
}

Amount amount_of(const Json& json, const char* ratio, const char* tokens) {
    Amount amount;
    if (!member(json, ratio).is_null()) amount.ratio = real(member(json, ratio));
    if (!member(json, tokens).is_null()) amount.tokens = whole(member(json, tokens));
    return amount;
}

PruningInfo rules_of(const Json& json) {
    PruningInfo rules;
    rules.strategy = text(member(json, "strategy"));
    rules.row_scope = text(member(json, "row_scope"));
    rules.newline = text(member(json, "newline"));
    const Amount amount = amount_of(json, "default_ratio", "default_tokens");
    rules.default_ratio = amount.ratio;
    rules.default_tokens = amount.tokens;
    return rules;
}

Json counts_of(const Json& request) {
    const auto plans = plans_of(member(request, "images"));
    Manifest manifest;
    manifest.pruning = rules_of(member(request, "pruning"));
    const auto selector = text(member(request, "selector"));
    const auto plan =
        plan_pruning(amount_of(request, "ratio", "tokens"), selector, manifest, pointers(plans));
    Json::Array policies, placeholders, grids;
    for (std::size_t i = 0; i < plan.counts.size(); ++i) {
        std::int64_t kept = 0;
        for (const auto count : plan.counts[i]) kept += count;
        const auto policy = newline_policy(plans[i], kept, manifest.pruning);
        policies.emplace_back(policy);
        placeholders.emplace_back(kept_placeholders(plans[i], kept, 2, policy));
        grids.push_back(plans[i].mosaic ? grid_of(stitched_grid(plans[i])) : Json());
    }
    return Json(Json::Object{{"counts", lists_of(plan.counts)},
                             {"pruned", Json(plan.pruned)},
                             {"reason", plan.reason ? Json(*plan.reason) : Json()},
                             {"stitched", Json(stitched_rows(selector, manifest.pruning))},
                             {"policies", Json(policies)},
                             {"placeholders", Json(placeholders)},
                             {"grids", Json(grids)}});
}

Json selected(const Json& request) {
    const auto scores = floats(member(request, "scores"));
    Choice choice;
    choice.scores = scores.data();
    choice.tokens = static_cast<std::int64_t>(scores.size());
    if (!member(request, "grid").is_null()) {
        const auto grid = wholes(member(request, "grid"));
        choice.grid = Grid{static_cast<int>(grid.at(0)), static_cast<int>(grid.at(1))};
    }
    choice.keep = whole(member(request, "keep"));
    choice.seed = std::stoull(text(member(request, "seed")));
    return list_of(select_tokens(text(member(request, "selector")), choice));
}

Json stitched(const Json& request) {
    std::vector<std::vector<float>> scores;
    for (const auto& own : items(member(request, "scores"))) scores.push_back(floats(own));
    return lists_of(stitched_rows_kept(plan_of(request), scores, whole(member(request, "keep"))));
}

Json placed(const Json& request) {
    const auto plans = plans_of(member(request, "images"));
    std::vector<Assembly> assemblies;
    std::vector<PlacedImage> images;
    std::vector<std::int64_t> runs;
    Json::Array shown;
    const auto& sent = items(member(request, "images"));
    for (std::size_t i = 0; i < plans.size(); ++i) {
        assemblies.push_back(assemble(plans[i], lists(member(sent[i], "kept")),
                                      static_cast<int>(whole(member(request, "prefix"))),
                                      text(member(request, "newline"))));
        const auto& own = assemblies.back();
        shown.push_back(lists_of(std::vector<std::vector<std::int64_t>>{own.places, own.source, own.runs}));
        runs.insert(runs.end(), own.runs.begin(), own.runs.end());
    }
    for (std::size_t i = 0; i < plans.size(); ++i) images.push_back({&plans[i], &assemblies[i]});
    const auto plain = wholes(member(request, "plain"));
    const std::int64_t id = whole(member(request, "image"));
    const auto positions = prompt_positions(plain, id, images, text(member(request, "policy")),
                                            static_cast<int>(whole(member(request, "axes"))));
    return Json(Json::Object{{"assemblies", Json(shown)},
                             {"ids", list_of(expand_images(plain, id, runs))},
                             {"positions", list_of(positions.ids)},
                             {"next", Json(positions.next)},
                             {"length", Json(positions.length())},
                             {"end", Json(unpruned_end(plain, pointers(plans)))}});
}

// Knows the text of some ids, and nothing else.
class SomeTexts final : public Tokenizer {
public:
    explicit SomeTexts(const Json& json) {
        for (const auto& [id, text] : *json.object()) texts_.emplace(std::stoll(id), *text.text());
    }
    std::vector<std::int64_t> encode(std::string_view, bool) const override { return {}; }
    std::string decode(const std::int64_t*, std::size_t) const override { return {}; }
    std::optional<std::string> token_text(std::int64_t id) const override {
        const auto found = texts_.find(id);
        return found == texts_.end() ? std::nullopt : std::optional<std::string>(found->second);
    }

private:
    std::map<std::int64_t, std::string> texts_;
};

std::optional<std::string> maybe_text(const Json& json) {
    return json.is_null() ? std::nullopt : std::optional<std::string>(text(json));
}

Json prompted(const Json& request) {
    Manifest manifest;
    const Json& form = member(request, "template");
    manifest.prompt.first_turn = text(member(form, "first_turn"));
    manifest.prompt.next_turn = maybe_text(member(form, "next_turn"));
    manifest.prompt.image = text(member(form, "image"));
    manifest.prompt.generation = text(member(form, "generation"));
    manifest.prompt.past_answer = text(member(form, "past_answer"));
    manifest.prompt.first_text = maybe_text(member(form, "first_text"));
    manifest.prompt.next_text = maybe_text(member(form, "next_text"));
    manifest.tokens.image = whole(member(request, "image"));
    const SomeTexts tokenizer(member(request, "texts"));
    const Prompter prompter(manifest, tokenizer);
    std::vector<PromptTurn> turns;
    for (const auto& turn : items(member(request, "turns"))) {
        const auto& parts = items(turn);
        turns.push_back({text(parts.at(0)), static_cast<std::size_t>(whole(parts.at(1))), text(parts.at(2))});
    }
    const auto plans = plans_of(member(request, "images"));
    return Json(prompter.render(turns, pointers(plans)));
}

Json counted(const Json& request) {
    Amount amount;
    amount.ratio = real(member(request, "ratio"));
    return Json(
        Json::Array{Json(amount.text()), Json(kept_count(whole(member(request, "tokens")), *amount.ratio))});
}

Json answer(const Json& request) {
    const auto& op = text(member(request, "op"));
    if (op == "count") return counted(request);
    if (op == "plan") return counts_of(request);
    if (op == "select") return selected(request);
    if (op == "stitch") return stitched(request);
    if (op == "place") return placed(request);
    if (op == "prompt") return prompted(request);
    throw std::runtime_error("no such op: " + op);
}

}  // namespace

int main() { return answer_lines(answer); }
