// Most of src/bundle is compared with Python by tests/test_cpp_bundle.py.
#include <doctest/doctest.h>

#include "base/error.h"
#include "bundle/contract.h"
#include "bundle/decode.h"
#include "bundle/manifest_check.h"
#include "bundle/upgrade.h"

using namespace fopru;

namespace {

struct Sample {
    std::string name;
    std::optional<std::int64_t> count;
    std::vector<double> values;
    std::array<int, 2> pair{};
};

Sample sample_of(const char* text) {
    Sample out;
    read_record(parse_json(text, "test"), "place",
                {required_field("name", out.name), optional_field("count", out.count),
                 optional_field("values", out.values), optional_field("pair", out.pair)});
    return out;
}

DecoderInfo decoder_info() {
    DecoderInfo info;
    info.layers = 2, info.kv_heads = 3, info.head_dim = 4, info.hidden_size = 12, info.vocab_size = 99;
    info.max_positions = 64;
    return info;
}

}  // namespace

TEST_CASE("bundle: records are read strictly") {
    Sample sample = sample_of(R"({"values": [1, 2.5], "name": "a", "count": null, "pair": [1, 2]})");
    CHECK(sample.name == "a");
    CHECK_FALSE(sample.count);
    CHECK(sample.values == std::vector<double>{1.0, 2.5});
    CHECK(sample.pair[1] == 2);
    CHECK_THROWS_WITH_AS(
        sample_of(R"({"name": true})"),
        "place.name is True, expected a string: rebuild the bundle with `python -m export.build`",
        BundleError);
    CHECK_THROWS_WITH_AS(sample_of("{}"),
                         "place lacks the key \"name\": rebuild the bundle with `python -m export.build`",
                         BundleError);
    CHECK_THROWS_WITH_AS(
        sample_of(R"({"name": "", "nmae": ""})"),
        "place has the unknown key \"nmae\" (known: name, count, values, pair): upgrade the runtime, "
        "or rebuild the bundle with `python -m export.build`",
        BundleError);
    CHECK_THROWS_AS(sample_of(R"({"name": "", "count": 1.0})"), BundleError);
    CHECK_THROWS_AS(sample_of(R"({"name": "", "pair": [1]})"), BundleError);
    CHECK_THROWS_AS(sample_of(R"({"name": "", "pair": [1, 3000000000]})"), BundleError);
}

TEST_CASE("bundle: format 1 becomes a layout") {
    Json old = parse_json(R"({"format_version": 1, "vision": {"image_size": [1, 1], "grid": [2, 2]},
                              "preprocess": {"crop": null, "resample": 3}})",
                          "test");
    CHECK(
        upgraded(old, 1).dump() ==
        R"({"format_version": 3, "preprocess": {"resample": 3}, "layout": {"kind": "single", "grid": [2, 2], )"
        R"("crop": null}})");
    Json damaged = parse_json(R"({"format_version": 1, "vision": 3})", "test");
    CHECK(upgraded(damaged, 1).dump() == R"({"format_version": 3, "vision": 3})");
}

TEST_CASE("bundle: contract of a decoder, layer by layer") {
    DecoderInfo info = decoder_info();
    contract::GraphContract decoder = contract::decoder_contract(info, contract::append, 9);
    CHECK(decoder.inputs.size() == 8);
    CHECK(decoder.inputs.back().name == "past_key_values.1.value");
    CHECK(decoder.inputs.back().shape == std::vector<std::int64_t>{-1, -1, 3, 4});
    CHECK(decoder.inputs.back().names == std::vector<std::string>{"batch", "past", "", ""});
    CHECK(decoder.outputs.back().name == "present.1.value");
    CHECK(contract::decoder_contract(info, contract::shared, 1).inputs.size() == 6);
    info.position_axes = 3;
    CHECK(contract::decoder_contract(info, contract::concat, 9).inputs[2].shape ==
          std::vector<std::int64_t>{3, -1, -1});
}

TEST_CASE("bundle: values that contradict each other") {
    PruningInfo pruning{"rank", "col_mean", -1, "one_pass", "late", "renumber", 0.5, std::nullopt};
    CHECK_NOTHROW(check(pruning));
    pruning.row_scope = "stitched";
    CHECK_THROWS_AS(check(pruning), BundleError);
    PromptTemplate prompt;
    prompt.first_turn = "{images}{prompt}A:";
    CHECK_NOTHROW(check(prompt));
    prompt.generation = "B:";
    CHECK_THROWS_AS(check(prompt), BundleError);
}
