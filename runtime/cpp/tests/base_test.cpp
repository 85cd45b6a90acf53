#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "base/checked.h"
#include "base/error.h"
#include "base/file.h"
#include "base/half.h"
#include "base/json.h"
#include "base/npz.h"
#include "base/python_text.h"
#include "base/sha256.h"

using namespace fopru;

TEST_CASE("base: products of dims that do not fit are refused, not wrapped") {
    CHECK(checked_bytes({3, 4}, 4) == 48);
    CHECK(checked_bytes({}, 8) == 8);
    CHECK(checked_bytes({0, std::numeric_limits<std::int64_t>::max()}, 4) == 0);
    CHECK(checked_bytes({std::int64_t{1} << 62}, 1) == std::size_t{1} << 62);
    CHECK_FALSE(checked_bytes({std::int64_t{1} << 62, 2}, 1));
    CHECK_FALSE(checked_bytes({std::int64_t{1} << 32, std::int64_t{1} << 32}, 4));
    CHECK_FALSE(checked_bytes({-1, -1}, 4));
    CHECK_FALSE(checked_mul<std::size_t>(SIZE_MAX, 2));
    CHECK_FALSE(checked_add<std::int64_t>(std::numeric_limits<std::int64_t>::max(), 1));
    CHECK(checked_add<std::int64_t>(-3, 1) == -2);
}

TEST_CASE("base: a JSON value keeps the order of its keys and the kind of its numbers") {
    Json json = parse_json(R"({"b": 1, "a": [1.0, -0, true, null, "\u00e9"]})", "test");
    CHECK(json.dump() == "{\"b\": 1, \"a\": [1.0, 0, true, null, \"\xc3\xa9\"]}");
    CHECK(*json.find("b")->integer() == 1);
    CHECK(json.find("a")->array()->at(0).integer() == nullptr);
    double number = 0.0;
    CHECK(json.find("b")->number(number));
    CHECK(number == 1.0);
    CHECK_FALSE(json.find("a")->number(number));
    CHECK(json.find("c") == nullptr);
    CHECK(Json(3).find("c") == nullptr);
    CHECK(Json(std::nan("")).dump() == "null");
    CHECK(Json(Json::Array{}).dump(2) == "[]");
    CHECK(Json(Json::Object{{"a", Json::Array{1}}}).dump(2) == "{\n  \"a\": [\n    1\n  ]\n}");
}

TEST_CASE("base: limits of a JSON text") {
    JsonLimits limits;
    limits.bytes = 10;
    CHECK_THROWS_WITH_AS(parse_json("[1, 2, 3, 4]", "x", limits),
                         "x is not JSON (it has 12 bytes, at most 10 are read): rebuild the bundle with "
                         "`python -m export.build`",
                         BundleError);
    limits = {};
    limits.values = 3;
    CHECK_NOTHROW(parse_json("[1, 2]", "x", limits));
    CHECK_THROWS_AS(parse_json("[1, 2, 3]", "x", limits), BundleError);
    limits = {};
    limits.depth = 1;
    CHECK_NOTHROW(parse_json("[1]", "x", limits));
    CHECK_THROWS_AS(parse_json("[[]]", "x", limits), BundleError);
}

TEST_CASE("base: what is shown of a long value ends soon") {
    Json::Array many(100000, Json("text"));
    CHECK(python_repr(Json(std::move(many)), 60).size() < 300);
    CHECK(python_repr(std::string("a\xff")) == "'a\\udcff'");
    CHECK(first_characters("\xc3\xa9\xc3\xa9x", 2) == "\xc3\xa9\xc3\xa9");
    CHECK(characters("\xc3\xa9x") == 2);
    CHECK(joined({"a", "b"}) == "a, b");
}

TEST_CASE("base: SHA-256 by the processor's instructions is that of the portable code") {
    CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    Sha256Mixer fast = accelerated_sha256();
    if (fast == nullptr) return;
    std::string data;
    for (int at = 0; at < 64 * 9; ++at) data += static_cast<char>(at * 37 + 11);
    std::uint32_t one[8] = {1, 2, 3, 4, 5, 6, 7, 8}, other[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    auto bytes = reinterpret_cast<const unsigned char*>(data.data());
    mix_sha256_portable(one, bytes, 9);
    fast(other, bytes, 9);
    for (int at = 0; at < 8; ++at) CHECK(one[at] == other[at]);
}

TEST_CASE("base: 16-bit floats keep infinities and numbers that are none") {
    const float infinite = std::numeric_limits<float>::infinity();
    CHECK(half_from_float(infinite) == 0x7c00);
    CHECK(half_from_float(-1e6f) == 0xfc00);
    CHECK(std::isnan(float_from_half(half_from_float(std::nanf("")))));
    CHECK(std::isnan(float_from_bfloat16(bfloat16_from_float(std::nanf("")))));
    CHECK(float_from_bfloat16(bfloat16_from_float(infinite)) == infinite);
}

TEST_CASE("base: a mapping is moved, not copied") {
    MappedFile file(__FILE__);
    std::string_view bytes = file.bytes();
    MappedFile moved(std::move(file));
    CHECK(moved.bytes().data() == bytes.data());
    CHECK(moved.bytes().substr(0, 8) == "#include");
    CHECK_THROWS_AS(MappedFile("/dev/null"), FileError);
    CHECK_THROWS_AS(read_file(__FILE__, 10), FileError);
    CHECK_FALSE(file_size(std::string(__FILE__) + std::string("\0x", 2)));
}

TEST_CASE("base: an array of floats has no integers") {
    NpyArray array{"float32", {1}, {0, 0, 128, 63}};
    CHECK(array.floats() == std::vector<float>{1.0f});
    CHECK_THROWS_AS(array.integers(), NpzError);
}
