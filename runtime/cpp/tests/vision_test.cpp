#include "vision/vision.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "bundle/contract.h"
#include "fake_backend.h"
#include "vision/gather.h"

using namespace fopru;
using namespace fopru::fake;

namespace {

using Ids = std::vector<std::int64_t>;

// An encoder of units of 2 pixels and 6 tokens in a grid of 2 x 3, one prefix row, width 2. Row t of a unit
// is (first pixel, t), its prefix row is (first pixel, -1); the score of token t is (t * 5 + second pixel)
// % 7.
struct ToyLayout : Layout {
    const char* kind() const override { return "toy"; }
    int prefix_tokens() const override { return 1; }
    bool masked() const override { return true; }
    std::optional<std::int64_t> unit_tokens() const override { return 6; }
    std::optional<std::int64_t> image_tokens() const override { return std::nullopt; }
    std::optional<Grid> unit_grid() const override { return Grid{2, 3}; }
    std::vector<std::int64_t> pixel_shape() const override { return {-1, 2}; }
    ImagePlan plan(int, int) const override { return {}; }
    std::vector<Image> views(const Image&, int) const override { return {}; }
};

struct Seen {  // of one call
    std::int64_t units, keep;
    Ids mask;
};

// Broken in the way that a test wants.
enum class Fault { none, score, order, range };

struct Toy {
    explicit Toy(bool device = false, bool newline = false)
        : backend(device),
          whole({{contract::pixel_values, Dtype::float32, {-1, 2}}, {"size", Dtype::int64, {1}}},
                {{contract::image_features, Dtype::float32, {}}},
                [this](FakeBinding& binding) { run(binding, false); }),
          pruned({{contract::pixel_values, Dtype::float32, {-1, 2}},
                  {"size", Dtype::int64, {1}},
                  {contract::num_keep, Dtype::int64, {1}},
                  {contract::token_mask, Dtype::boolean, {}}},
                 {{contract::image_features, Dtype::float32, {}},
                  {contract::kept_indices, Dtype::int64, {}},
                  {contract::token_scores, Dtype::float32, {}}},
                 [this](FakeBinding& binding) { run(binding, true); }) {
        manifest.layout = std::make_shared<ToyLayout>();
        manifest.decoder.hidden_size = 2;
        manifest.pruning.strategy = "rank";
        const auto opened = [this](const std::string& graph) -> Session& {
            graphs.insert(graph);
            return graph == contract::vision_encoder ? whole : pruned;
        };
        std::optional<std::vector<float>> end;
        if (newline) end = std::vector<float>{-5, -6};
        encoder = std::make_unique<VisionEncoder>(backend, opened, manifest, end);
    }

    void run(FakeBinding& binding, bool prunes) {
        const View &pixels = binding.in(contract::pixel_values),
                   &features = binding.out(contract::image_features);
        const std::int64_t units = pixels.shape.dims[0], keep = features.shape.dims[1] - 1;
        Seen own{units, prunes ? *numbers<std::int64_t>(binding.in(contract::num_keep)) : -1, {}};
        for (std::int64_t unit = 0; unit < units; ++unit) {
            const float* pixel = numbers<float>(pixels) + unit * 2;
            std::vector<float> scores;
            Ids order;
            for (std::int64_t token = 0; token < 6; ++token) {
                scores.push_back(static_cast<float>((token * 5 + static_cast<std::int64_t>(pixel[1])) % 7));
                const bool valid =
                    !prunes || numbers<char>(binding.in(contract::token_mask))[unit * 6 + token] != 0;
                if (prunes) own.mask.push_back(valid);
                if (valid) order.push_back(token);
            }
            std::stable_sort(order.begin(), order.end(), [&](std::int64_t one, std::int64_t other) {
                return scores[static_cast<std::size_t>(one)] > scores[static_cast<std::size_t>(other)];
            });
            for (std::int64_t token = 0; token < 6; ++token) {  // the padding comes last
                if (std::find(order.begin(), order.end(), token) == order.end()) order.push_back(token);
            }
            order.resize(static_cast<std::size_t>(keep));
            std::sort(order.begin(), order.end());
            float* row = numbers<float>(features) + unit * (keep + 1) * 2;
            *row++ = pixel[0];
            *row++ = -1;
            for (const std::int64_t token : order) {
                *row++ = pixel[0];
                *row++ = static_cast<float>(token);
            }
            if (!prunes) continue;
            if (fault == Fault::score) scores[2] = std::numeric_limits<float>::quiet_NaN();
            if (fault == Fault::order) std::reverse(order.begin(), order.end());
            if (fault == Fault::range) order.back() = 6;
            std::copy(order.begin(), order.end(),
                      numbers<std::int64_t>(binding.out(contract::kept_indices)) + unit * keep);
            std::copy(scores.begin(), scores.end(),
                      numbers<float>(binding.out(contract::token_scores)) + unit * 6);
        }
        calls.push_back(own);
    }

    // An image of so many units, every placeholder a token or prefix row, in order.
    PreparedImage image(int units, float first = 0) const {
        PreparedImage made;
        for (int unit = 0; unit < units; ++unit) {
            made.plan.units.push_back({6, Grid{2, 3}, std::nullopt});
            made.pixels.values.push_back(first + static_cast<float>(unit));
            made.pixels.values.push_back(first + static_cast<float>(unit * 2));
        }
        made.plan.sequence.resize(static_cast<std::size_t>(units) * 7);
        std::iota(made.plan.sequence.begin(), made.plan.sequence.end(), 0);
        made.plan.runs = {units * 7};
        made.plan.spans = {units * 7};
        made.plan.offsets = made.plan.sequence;
        made.plan.inputs["size"] = {{1}, {units}};
        made.pixels.shape = {units, 2};
        return made;
    }
    std::vector<float> values(const Rows& rows) {
        std::vector<float> made(static_cast<std::size_t>(rows.count * rows.width));
        backend.download(made.data(),
                         {rows.buffer.get(), Dtype::float32, {rows.count, rows.width}, rows.offset});
        return made;
    }

    Fault fault = Fault::none;
    std::vector<Seen> calls;
    std::set<std::string> graphs;
    FakeBackend backend;
    FakeSession whole, pruned;
    Manifest manifest;
    std::unique_ptr<VisionEncoder> encoder;
};

std::string refusal(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

Selection keeping(Counts counts, const std::string& selector = "graph") {
    Selection selection;
    selection.counts = std::move(counts);
    selection.selector = selector;
    return selection;
}

}  // namespace

TEST_CASE("vision: pruned by the graph, the prefix row stays") {
    for (const bool device : {false, true}) {
        Toy toy(device);
        const PreparedImage image = toy.image(1, 10);
        const auto encoded = toy.encoder->encode({&image}, keeping({{2}}));
        // Scores (t * 5 + 10) % 7 = 3 1 6 4 2 0
        CHECK(encoded[0].kept == std::vector<Ids>{{2, 3}});
        CHECK(encoded[0].kept_indices() == Ids{2, 3});
        CHECK(encoded[0].scores->at(0) == std::vector<float>{3, 1, 6, 4, 2, 0});
        CHECK(toy.values(encoded[0].features) == std::vector<float>{10, -1, 10, 2, 10, 3});
        CHECK(toy.graphs == std::set<std::string>{contract::vision_encoder_fopru});
        CHECK(toy.calls[0].mask == Ids{1, 1, 1, 1, 1, 1});
    }
}

TEST_CASE("vision: units of one image share calls of eight, of equal K") {
    Toy toy;
    const PreparedImage image = toy.image(19);
    Ids counts(19, 3);
    counts[4] = 1;
    const auto encoded = toy.encoder->encode({&image}, keeping({counts}));
    REQUIRE(toy.calls.size() == 4);
    CHECK(toy.calls[0].units == 8);
    CHECK(toy.calls[1].units == 8);
    CHECK(toy.calls[2].units == 2);
    CHECK(toy.calls[3].units == 1);
    CHECK(toy.calls[3].keep == 1);
    CHECK(encoded[0].features.count == 19 * 4 - 2);
    // Unit by unit as in calls of their own.
    const auto values = toy.values(encoded[0].features);
    std::size_t at = 0;
    for (int unit = 0; unit < 19; ++unit) {
        Toy alone;
        PreparedImage one = alone.image(1);
        one.pixels.values = {static_cast<float>(unit), static_cast<float>(unit * 2)};
        const auto own = alone.encoder->encode({&one}, keeping({{counts[static_cast<std::size_t>(unit)]}}));
        for (const float value : alone.values(own[0].features)) CHECK(values.at(at++) == value);
        CHECK(own[0].kept[0] == encoded[0].kept[static_cast<std::size_t>(unit)]);
    }
    CHECK(at == values.size());
}

TEST_CASE("vision: images with inputs of their own are calls of their own, others share one") {
    Toy toy;
    const PreparedImage one = toy.image(2), other = toy.image(2, 30);
    toy.encoder->encode({&one, &other}, keeping({{3, 3}, {3, 3}}));
    CHECK(toy.calls.size() == 2);
}

TEST_CASE("vision: padding is masked, left out, and a unit of padding alone is not encoded") {
    Toy toy;
    PreparedImage image = toy.image(3);
    image.plan.units[1].valid = {{0, 2, 0, 2}};  // two of three columns
    image.plan.units[2].valid = {{0, 0, 0, 0}};  // nothing
    const auto encoded = toy.encoder->encode({&image}, keeping({{6, 4, 0}}));
    CHECK(encoded[0].kept == std::vector<Ids>{{0, 1, 2, 3, 4, 5}, {0, 1, 3, 4}, {}});
    CHECK(encoded[0].scores->at(2) == std::vector<float>(6, 0));
    REQUIRE(toy.calls.size() == 2);
    CHECK(toy.calls[1].mask == Ids{1, 1, 0, 1, 1, 0});
    // Of the unit of padding the prefix row alone, which is zeros.
    const auto values = toy.values(encoded[0].features);
    CHECK(std::vector<float>(values.end() - 2, values.end()) == std::vector<float>{0, 0});

    // Rows of the grid go in whole, with their padding, which is dropped behind the graph.
    toy.manifest.pruning.strategy = "row";
    toy.calls.clear();
    const auto rows = toy.encoder->encode({&image}, keeping({{6, 4, 0}}));
    CHECK(toy.calls[0].units == 2);
    CHECK(toy.calls[0].keep == 6);
    CHECK(rows[0].kept == encoded[0].kept);
    CHECK(toy.values(rows[0].features) == values);
    CHECK(refusal([&] { toy.encoder->encode({&image}, keeping({{6, 3, 0}})); }) ==
          "strategy \"row\" keeps whole rows of 2 tokens, not 3: give a multiple");
}

TEST_CASE("vision: host selectors") {
    Toy toy;
    const PreparedImage image = toy.image(2, 10);
    const auto ranked = toy.encoder->encode({&image}, keeping({{2, 2}}, "rank"));
    CHECK(toy.calls[0].keep == 6);
    Toy other;
    const auto by_graph = other.encoder->encode({&image}, keeping({{2, 2}}));
    CHECK(ranked[0].kept == by_graph[0].kept);
    CHECK(*ranked[0].scores == *by_graph[0].scores);
    CHECK(toy.values(ranked[0].features) == other.values(by_graph[0].features));
    Toy plain;
    const auto uniform = plain.encoder->encode({&image}, keeping({{3, 3}}, "uniform"));
    CHECK(plain.graphs == std::set<std::string>{contract::vision_encoder});
    CHECK_FALSE(uniform[0].scores);
    CHECK(uniform[0].kept == std::vector<Ids>{{1, 3, 5}, {1, 3, 5}});
    const auto random = plain.encoder->encode({&image}, keeping({{3, 3}}, "random"));
    CHECK(random[0].kept[0] != random[0].kept[1]);  // another seed per unit
}

TEST_CASE("vision: unpruned, with newlines between") {
    Toy toy(false, true);
    PreparedImage image = toy.image(1, 10);
    image.plan.sequence = {0, 1, 2, 3, newline_row, 4, 5, 6, newline_row};
    image.plan.offsets = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    image.plan.runs = image.plan.spans = {9};
    const auto encoded = toy.encoder->encode_unpruned({&image});
    CHECK(toy.values(encoded[0].features) ==
          std::vector<float>{10, -1, 10, 0, 10, 1, 10, 2, -5, -6, 10, 3, 10, 4, 10, 5, -5, -6});
    CHECK(encoded[0].kept == std::vector<Ids>{{0, 1, 2, 3, 4, 5}});
    CHECK_FALSE(encoded[0].scores);
}

TEST_CASE("vision: what the graph gives is checked") {
    Toy toy;
    const PreparedImage image = toy.image(1, 10);
    const auto encode = [&] { toy.encoder->encode({&image}, keeping({{3}})); };
    toy.fault = Fault::score;
    CHECK(refusal(encode) ==
          "the vision encoder gave a token score that is not finite: check image and bundle");
    toy.fault = Fault::order;
    CHECK(refusal(encode) ==
          "the vision encoder kept token 2 behind 3, expected rising numbers in 0..5: check image "
          "and bundle");
    toy.fault = Fault::range;
    CHECK(refusal(encode) ==
          "the vision encoder kept token 6 behind 2, expected rising numbers in 0..5: check image "
          "and bundle");
}

TEST_CASE("vision: what is given is checked") {
    Toy toy;
    PreparedImage image = toy.image(2);
    image.pixels.values.pop_back();
    CHECK(refusal([&] { toy.encoder->encode({&image}, keeping({{3, 3}})); }) ==
          "an image has fewer pixels than its plan: prepare it with the bundle's layout");
    image = toy.image(2);
    image.plan.inputs["size"].values = {1, 2};
    CHECK(refusal([&] { toy.encoder->encode_unpruned({&image}); }) ==
          "the input size of an image has not as many values as its shape says: prepare it with the bundle's "
          "layout");
    image.plan.inputs = {{"other", {{1}, {1}}}};
    CHECK(refusal([&] { toy.encoder->encode_unpruned({&image}); }) ==
          "graph vision_encoder has no other: rebuild the bundle with `python -m export.build`");
    CHECK(toy.encoder->encode({}, keeping({})).empty());
}

TEST_CASE("gather: runs of neighbours are one copy each") {
    FakeBackend backend;
    const Rows one = upload_rows(backend, {0, 1, 2, 3, 4}, 1), other = upload_rows(backend, {10, 11, 12}, 1);
    const std::vector<Part> parts = {{one, std::nullopt}, {other, Ids{2, 0, 1}}};
    backend.copies = 0;
    const Rows made = gather(backend, parts, {1, 2, 3, 5, 6, 7, 4, newline_row}, 1);
    std::vector<float> values(8);
    backend.download(values.data(), {made.buffer.get(), Dtype::float32, {8}, 0});
    CHECK(values == std::vector<float>{1, 2, 3, 12, 10, 11, 4, 11});
    CHECK(backend.copies == 5);
    CHECK(gather(backend, parts, {}, 1).count == 0);
    CHECK(refusal([&] { gather(backend, parts, {8}, 1); }) ==
          "row 8 of the visual tokens is wanted, but there are 8: check image and bundle");
    CHECK(refusal([&] { gather(backend, {}, {newline_row}, 1); }) ==
          "row -1 of the visual tokens is wanted, but there are 0: check image and bundle");
    CHECK(refusal([&] { gather(backend, {{one, Ids{5}}}, {0}, 1); }) ==
          "visual token 5 is wanted of 5: check image and bundle");
    CHECK(refusal([&] { gather(backend, parts, {0}, 2); }) ==
          "visual tokens have a width of 1, expected 2: check the bundle");
}
