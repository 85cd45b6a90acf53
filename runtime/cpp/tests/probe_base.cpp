// src/base for tests/test_cpp_base.py.
#include <cstring>

#include "base/file.h"
#include "base/half.h"
#include "base/npz.h"
#include "base/python_text.h"
#include "base/sha256.h"
#include "base/utf8_check.h"
#include "probe.h"

using namespace fopru;

namespace {

Json array_record(const NpyArray& array) {
    Json::Array shape(array.shape.begin(), array.shape.end());
    std::vector<double> values = array.doubles();
    Json::Array all(values.begin(), values.end());
    std::string_view bytes(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
    return Json(Json::Object{{"dtype", Json(array.dtype)},
                             {"shape", Json(std::move(shape))},
                             {"sha256", Json(sha256(bytes))},
                             {"values", Json(std::move(all))}});
}

Json npz_record(const NpzArrays& arrays) {
    Json::Object out;
    for (const auto& [name, array] : arrays) out.emplace_back(name, array_record(array));
    return Json(std::move(out));
}

// Every piece length from `piece`, so that all ways through `update` are taken.
std::string sha256_in_pieces(std::string_view bytes, std::size_t piece) {
    Sha256 hash;
    for (std::size_t at = 0; at < bytes.size(); at += piece) hash.update(bytes.substr(at, piece));
    return hash.hex();
}

// Floats as bits, both ways for both kinds.
Json halves(const Json& request) {
    Json::Array out;
    for (const Json& bits : *request.find("bits")->array()) {
        auto narrow = static_cast<std::uint16_t>(*bits.integer());
        float values[] = {float_from_half(narrow), float_from_bfloat16(narrow)};
        for (float value : values) {
            std::uint32_t wide;
            std::memcpy(&wide, &value, sizeof wide);
            out.emplace_back(static_cast<std::int64_t>(wide));
        }
    }
    return Json(std::move(out));
}

Json narrowed(const Json& request) {
    Json::Array out;
    for (const Json& bits : *request.find("bits")->array()) {
        auto wide = static_cast<std::uint32_t>(*bits.integer());
        float value;
        std::memcpy(&value, &wide, sizeof value);
        out.emplace_back(static_cast<std::int64_t>(half_from_float(value)));
        out.emplace_back(static_cast<std::int64_t>(bfloat16_from_float(value)));
    }
    return Json(std::move(out));
}

Json answer(const std::string& op, const Json& request) {
    if (op == "json") return Json(parse_json(bytes_of(request, "hex"), "bundle.json").dump(2));
    if (op == "line") return Json(parse_json(bytes_of(request, "hex"), "bundle.json").dump());
    if (op == "repr") return Json(python_repr(*request.find("of")));
    if (op == "path") return Json(plain_path(text_of(request, "path")));
    if (op == "join") return Json(join_path(plain_path(text_of(request, "path")), text_of(request, "name")));
    if (op == "sha256") {
        std::string bytes = bytes_of(request, "hex");
        return Json(sha256_in_pieces(bytes, static_cast<std::size_t>(*request.find("piece")->integer())));
    }
    if (op == "sha256_file") return Json(sha256_of_file(text_of(request, "path")));
    if (op == "npz") return npz_record(parse_npz(MappedFile(text_of(request, "path")).bytes()));
    if (op == "npz_bytes") return npz_record(parse_npz(bytes_of(request, "hex")));
    if (op == "halves") return halves(request);
    if (op == "narrowed") return narrowed(request);
    if (op == "utf8") return Json(first_bad_utf8(bytes_of(request, "hex")) == std::string_view::npos);
    throw std::runtime_error("unknown op " + op);
}

}  // namespace

int main() { return run_probe(answer); }
