#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/pcg64.h"
#include "pruning/pruning.h"
#include "pruning/ranking.h"

using namespace fopru;

namespace {

using Indices = std::vector<std::int64_t>;

// Ids are the bytes of the text; the image token is "#".
class Bytes final : public Tokenizer {
public:
    Indices encode(std::string_view text, bool add_special_tokens) const override {
        Indices ids(text.begin(), text.end());
        if (add_special_tokens) ids.insert(ids.begin(), 1);
        return ids;
    }
    std::string decode(const std::int64_t*, std::size_t) const override { return {}; }
    std::optional<std::string> token_text(std::int64_t id) const override {
        return id < 32 ? std::nullopt : std::optional<std::string>(std::string(1, static_cast<char>(id)));
    }
};

Manifest chat() {
    Manifest manifest;
    manifest.prompt.first_turn = "{images}{prompt}:";
    manifest.prompt.next_turn = "|{images}{prompt}:";
    manifest.prompt.image = "<#>";
    manifest.prompt.add_special_tokens = true;
    manifest.prompt.generation = ":";
    manifest.prompt.past_answer = "={answer}";
    manifest.tokens.image = '#';
    return manifest;
}

ImagePlan lines_of_two() {  // one unit of 2 x 2 tokens, a newline behind each line
    ImagePlan plan;
    plan.units = {{4, Grid{2, 2}, std::nullopt}};
    plan.runs = plan.spans = {6};
    plan.sequence = {0, 1, newline_row, 2, 3, newline_row};
    plan.offsets = {0, 1, 2, 3, 4, 5};
    plan.lines = Indices{0, 0, 0, 1, 1, 1};
    return plan;
}

}  // namespace

TEST_CASE("counts are rounded to the nearest, halves up, and stay in range") {
    CHECK(kept_count(576, 0.3) == 173);
    CHECK(kept_count(5, 0.5) == 3);
    CHECK(kept_count(5, 1e-300) == 1);
    CHECK(kept_count(5, 1.0) == 5);
    CHECK_THROWS_AS(kept_count(0, 0.5), RequestError);
    CHECK_THROWS_WITH_AS(kept_count(5, std::nan("")),
                         "ratio is nan, but it is the fraction of tokens kept: give a "
                         "number in (0, 1], e.g. 0.3",
                         RequestError);
}

TEST_CASE("the generator is NumPy's") {
    Pcg64 random(0);
    // np.random.PCG64(0).random_raw(2), np.random.default_rng(0).random(3)[2]
    CHECK(random.next_uint64() == 11749869230777074271ULL);
    CHECK(random.next_uint64() == 4976686463289251617ULL);
    CHECK(random.next_double() == 0.04097352393619469);
    CHECK(random.bounded(0) == 0);
    for (int i = 0; i < 100; ++i) CHECK(random.bounded(6) <= 6);
    // Beyond 32 bits whole numbers are drawn.
    for (int i = 0; i < 100; ++i)
        CHECK(random.bounded((std::uint64_t{1} << 40) + 5) <= (std::uint64_t{1} << 40) + 5);
    CHECK(random.bounded(std::numeric_limits<std::uint64_t>::max()) != 0);
}

TEST_CASE("values that are no number come last, and ties go to the lower place") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(best_places({nan, 1, 2, nan, 2}, 3) == Indices{1, 2, 4});
    CHECK(best_places({nan, 1, 2, nan, 2}, 4) == Indices{0, 1, 2, 4});
    CHECK(best_places({1, 2}, 9) == Indices{0, 1});
    CHECK(best_places({1, 2}, -1).empty());
}

TEST_CASE("a selector needs whole rows of a grid that holds all tokens") {
    const std::vector<float> scores(6, 1.0F);
    CHECK(select_tokens("row", {scores.data(), 6, Grid{2, 3}, 3, 0}) == Indices{0, 1, 2});
    CHECK_THROWS_AS(select_tokens("row", {scores.data(), 6, Grid{2, 2}, 2, 0}), RequestError);
    CHECK_THROWS_AS(select_tokens("row", {scores.data(), 6, Grid{0, 0}, 2, 0}), RequestError);
    CHECK_THROWS_AS(select_tokens("row", {scores.data(), 6, std::nullopt, 3, 0}), RequestError);
    CHECK_THROWS_AS(select_tokens("graph", {scores.data(), 6, std::nullopt, 3, 0}), RequestError);
    for (const auto& name : host_selectors()) {
        CHECK(select_tokens(name, {scores.data(), 6, Grid{2, 3}, 6, 1}) == Indices{0, 1, 2, 3, 4, 5});
    }
}

TEST_CASE("newlines stay by policy") {
    const auto plan = lines_of_two();
    const auto all = assemble(plan, {{2}}, 0, "keep_all");
    CHECK(all.places == Indices{2, 3, 5});
    CHECK(all.source == Indices{newline_row, 0, newline_row});
    CHECK(assemble(plan, {{2}}, 0, "keep_nonempty").places == Indices{3, 5});
    CHECK(assemble(plan, {{2}}, 0, "drop").places == Indices{3});
    CHECK(assemble(plan, {{}}, 0, "drop").runs == Indices{0});
    CHECK_THROWS_AS(assemble(plan, {{4}}, 0, "drop"), RequestError);
    CHECK_THROWS_AS(assemble(plan, {}, 0, "drop"), RequestError);
}

TEST_CASE("positions go on behind the unpruned image, or are counted anew") {
    const auto plan = lines_of_two();
    const auto assembly = assemble(plan, {{0, 3}}, 0, "drop");
    const Indices plain = {7, 9, 8};
    CHECK(expand_images(plain, 9, assembly.runs) == Indices{7, 9, 9, 8});
    const auto original = prompt_positions(plain, 9, {{&plan, &assembly}}, "original", 1);
    CHECK(original.ids == Indices{0, 1, 5, 7});
    CHECK(original.next == 8);
    CHECK(unpruned_end(plain, {&plan}) == 8);
    const auto renumbered = prompt_positions(plain, 9, {{&plan, &assembly}}, "renumber", 3);
    CHECK(renumbered.length() == 4);
    CHECK(renumbered.ids == Indices{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3});
    CHECK(renumbered.next == 4);
    CHECK_THROWS_AS(prompt_positions({7}, 9, {{&plan, &assembly}}, "original", 1), RequestError);
    CHECK_THROWS_AS(expand_images({9, 9}, 9, {1}), RequestError);
}

TEST_CASE("a chat becomes ids with one image token per run") {
    const Manifest manifest = chat();
    const Bytes tokenizer;
    const Prompter prompter(manifest, tokenizer);
    const auto plan = lines_of_two();
    CHECK(prompter.render({{"hi", 1, "yes"}, {"why", 0, ""}}, {&plan}) == "<#>hi=yes|why:");
    CHECK(prompter.ids({{"a", 0, ""}}, {}) == Indices{1, 'a', ':'});
    CHECK_THROWS_AS(prompter.render({{"a#b", 0, ""}}, {}), RequestError);
    CHECK_THROWS_AS(prompter.render({{"a", 1, ""}}, {}), RequestError);
    // Two megabytes of text for each of the runs.
    auto tiles = plan;
    tiles.runs.assign(40, 1);
    tiles.text = std::string(std::size_t{50} << 20, 'x') + "{image}";
    CHECK(prompter.render({{"a", 1, ""}}, {&tiles}).size() > tiles.text.size() - 7);
    CHECK_THROWS_AS(prompter.render({{"a", 2, ""}}, {&tiles, &tiles}), RequestError);
    Manifest unknown = chat();
    unknown.tokens.image = 5;
    CHECK_THROWS_AS(Prompter(unknown, tokenizer), BundleError);
}

TEST_CASE("an image without tiles has no rows through all of them") {
    CHECK_THROWS_AS(stitched_grid(lines_of_two()), RequestError);
}
