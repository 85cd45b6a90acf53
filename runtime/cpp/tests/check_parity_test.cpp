// The comparison of stages, without a bundle. tests/test_cpp_check.py compares it with Python's on random
// arrays.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "check/costs.h"
#include "check/parity.h"

using namespace fopru;

namespace {

// Two units of three tokens, of which two are kept each.
Tensors arrays() {
    Tensors tensors;
    tensors.set("pixel_values", float_tensor({1, 2}, {0.5f, -0.5f}));
    tensors.set("kept_counts", integer_tensor({2}, {2, 2}));
    tensors.set("image_features", float_tensor({2, 2}, {3.0f, 4.0f, 0.0f, 0.0f}));
    tensors.set("token_scores", float_tensor({6}, {0.5f, 0.25f, 0.25f, 0.75f, 0.5f, 0.1f}));
    tensors.set("kept_indices", integer_tensor({4}, {0, 1, 0, 1}));
    tensors.set("pruned_features", float_tensor({1, 2}, {1.0f, 2.0f}));
    tensors.set("input_ids", integer_tensor({1, 2}, {7, 8}));
    tensors.set("position_ids", integer_tensor({1, 2}, {0, 1}));
    tensors.set("inputs_embeds", float_tensor({1, 1, 2}, {1.0f, 2.0f}));
    tensors.set("logits", float_tensor({1, 3}, {1.0f, -2.0f, 0.5f}));
    tensors.set("tokens", integer_tensor({1, 2}, {3, 4}));
    return tensors;
}

const UnitScores units{{3, 3}, std::nullopt};

const StageResult& stage_of(const ParityReport& report, const std::string& name) {
    for (const StageResult& stage : report.stages) {
        if (stage.name == name) return stage;
    }
    FAIL("no stage " << name);
    return report.stages.front();
}

}  // namespace

TEST_CASE("equal arrays agree in every stage") {
    const ParityReport report = compare(arrays(), arrays(), units);
    CHECK(report.ok());
    REQUIRE(report.stages.size() == stages().size());
    for (std::size_t at = 0; at < report.stages.size(); ++at)
        CHECK(report.stages[at].name == stages()[at].name);
    CHECK(stage_of(report, "image_features").tolerance == doctest::Approx(4e-4));
    CHECK(stage_of(report, "image_features").cosine == 1.0);  // a row of zeros is like another
    CHECK(stage_of(report, "kept_indices").chosen == 1.0);
}

TEST_CASE("the first difference is named with place and values") {
    Tensors measured = arrays();
    measured.set("logits", float_tensor({1, 3}, {1.0f, -2.0f, 0.75f}));
    const ParityReport report = compare(arrays(), measured, units);
    CHECK(report.first_divergence() == "logits");
    CHECK(stage_of(report, "logits").detail == "1 of 3 differ, first at [0, 2]: 0.75, reference 0.5");
    measured.set("logits", float_tensor({1, 3}, {1.0f, std::numeric_limits<float>::quiet_NaN(), 0.5f}));
    const ParityReport other = compare(arrays(), measured, units);
    CHECK(stage_of(other, "logits").detail == "1 of 3 differ, first at [0, 1]: nan, reference -2.0");
    CHECK_FALSE(stage_of(other, "logits").cosine);
    CHECK(to_json(other).dump().find("nan,") !=
          std::string::npos);  // in the sentence alone: JSON has no such number
}

TEST_CASE("a near-tie is accepted, named, and ends the comparison of what follows") {
    Tensors measured = arrays();
    measured.set("kept_indices", integer_tensor({4}, {0, 2, 0, 1}));  // 0.25 ties with 0.25
    measured.set("tokens", integer_tensor({1, 2}, {9, 9}));
    const ParityReport report = compare(arrays(), measured, units);
    CHECK(report.ok());
    CHECK(stage_of(report, "kept_indices").detail ==
          "near-tie: the scores of tokens [1, 2] are equal within 1e-05 of the boundary score");
    CHECK(stage_of(report, "tokens").skipped);
    CHECK(compare(arrays(), measured, std::nullopt).first_divergence() == "kept_indices");
}

TEST_CASE("a worse choice diverges, and says how good it is") {
    Tensors measured = arrays();
    measured.set("kept_indices", integer_tensor({4}, {0, 1, 0, 2}));  // 0.1 in place of 0.5
    const ParityReport report = compare(arrays(), measured, units);
    CHECK(report.first_divergence() == "kept_indices");
    CHECK(*stage_of(report, "kept_indices").chosen == doctest::Approx(1 - 0.4 / 0.9));
}

TEST_CASE("missing and misshapen stages diverge") {
    Tensors measured = arrays();
    measured.set("tokens", integer_tensor({1, 1}, {3}));
    measured.set("logits of other", float_tensor({1, 3}, {1.0f, -2.0f, 0.5f}));
    CHECK(stage_of(compare(arrays(), measured, units), "tokens").detail == "shape [1, 1], reference [1, 2]");
    CHECK(stage_of(compare(arrays(), measured, units), "logits of other").ok);
    const ParityReport nothing = compare(Tensors(), Tensors(), units);
    CHECK(stage_of(nothing, "pixel_values").detail == "missing from the reference and the measured arrays");
}

TEST_CASE("a converted graph is held to what the build measured") {
    Tensors measured = arrays();
    measured.set("logits", float_tensor({1, 3}, {1.0f, -2.0f, 0.51f}));
    measured.set("tokens", integer_tensor({1, 2}, {3, 5}));
    const ParityReport strict = compare(arrays(), measured, units);
    const std::map<std::string, std::string> precisions = {{"decoder_model_merged", "fp16"}};
    const auto recorded = [](double cost) {
        return Json(Json::Object{{"costs", Json(Json::Object{{"logits", cost}})}});
    };
    CHECK(judged(strict, precisions, recorded(0.01)).ok());
    CHECK(judged(strict, {{"decoder_model_merged", "int8"}}, recorded(0.001)).first_divergence() == "logits");
    CHECK(judged(strict, precisions, recorded(0.001))
              .ok());  // float16 sums: cosine and size are as they should be
    // A number added to all logits changes nothing, and hides nothing.
    measured.set("logits", float_tensor({1, 3}, {11.0f, 8.0f, 10.51f}));
    CHECK(judged(compare(arrays(), measured, units), precisions, recorded(0.001)).ok());
    CHECK(stage_of(compare(arrays(), measured, units), "logits").gain == doctest::Approx(1.0).epsilon(0.01));
    measured.set("logits", float_tensor({1, 3}, {1.0f, -2.0f, 0.7f}));
    const ParityReport worse = compare(arrays(), measured, units);
    CHECK(judged(worse, precisions, recorded(0.001)).first_divergence() == "logits");
    CHECK(judged(strict, precisions, Json(nullptr)).ok());
    CHECK(judged(strict, {}, recorded(0.01)).first_divergence() == "logits");
    const ParityReport held = judged(strict, precisions, recorded(0.01));
    CHECK(stage_of(held, "tokens").reason == "fp16: said, not judged");
    CHECK(stage_of(held, "logits").tolerance == doctest::Approx(1.5 * 0.01 + 2e-4));
}
