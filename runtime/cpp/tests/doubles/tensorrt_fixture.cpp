#include "tensorrt_fixture.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "backend/tensorrt/engine_files.h"
#include "base/error.h"
#include "bundle/bundle.h"
#include "counted_new.h"
#include "double_toys.h"

namespace fopru_double {

using fopru::Backend;
using fopru::Binding;
using fopru::Dtype;
using fopru::Session;
using fopru::Shape;
using fopru::View;

namespace {

constexpr const char* vision_engine = R"({"toy": "vision", "scratch": 1000,
    "profiles": [{"pixel_values": [[1, 12, 4], [1, 12, 4], [8, 12, 4]]}],
    "values": {"num_keep": [[1], [4], [11]]}})";
constexpr const char* embed_engine = R"({"toy": "embed", "scratch": 0,
    "profiles": [{"input_ids": [[1, 1], [1, 8], [1, 64]]}]})";

std::string decoder_engine() {
    const auto profile = [](const char* rows, const char* past, const char* total) {
        std::string text =
            std::string("{\"inputs_embeds\": [") + rows + "], \"attention_mask\": [" + total + "]";
        std::string ids = rows;
        for (std::size_t at = ids.find(", 4]"); at != std::string::npos; at = ids.find(", 4]"))
            ids.erase(at, 3);
        text += ", \"position_ids\": [" + ids + "]";
        for (int layer = 0; layer < toy_layers; ++layer) {
            for (const char* part : {"key", "value"}) {
                text += ", \"past_key_values." + std::to_string(layer) + "." + part + "\": [" + past + "]";
            }
        }
        return text + "}";
    };
    return "{\"toy\": \"decoder\", \"scratch\": 5000, \"profiles\": [" +
           profile("[1, 1, 4], [1, 8, 4], [1, 16, 4]", "[1, 0, 1, 3], [1, 0, 1, 3], [1, 512, 1, 3]",
                   "[1, 1], [1, 8], [1, 528]") +
           ", " +
           profile("[1, 1, 4], [1, 1, 4], [1, 1, 4]", "[1, 1, 1, 3], [1, 64, 1, 3], [1, 512, 1, 3]",
                   "[1, 2], [1, 65], [1, 513]") +
           "], \"values\": {\"num_logits_to_keep\": [[1], [1], [1]]}}";
}

std::string text_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}

}  // namespace

TensorRtTest::TensorRtTest()
    : files{{vision, vision_engine}, {embed, embed_engine}, {decoder, decoder_engine()}} {
    reset();
    std::string pattern = (std::filesystem::temp_directory_path() / "fopru-tensorrt-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    root_ = pattern;
    bundle_ = root_ + "/bundle";
    std::filesystem::copy(FOPRU_TEST_DATA "/bundle_v3", bundle_, std::filesystem::copy_options::recursive);
    std::filesystem::permissions(bundle_, std::filesystem::perms::owner_all,
                                 std::filesystem::perm_options::add);
    write_engines();
}

TensorRtTest::~TensorRtTest() {
    std::filesystem::remove_all(root_);
    Device& own = device();
    for (const std::string& what : own.violations) CHECK_MESSAGE(false, what);
    CHECK(own.blocks() == 0);
    CHECK(own.pinned.empty());
    CHECK(own.streams.empty());
    CHECK(own.graphs.empty());
    CHECK(own.launches.empty());
    CHECK(own.counts["contexts"] == 0);
    CHECK(own.counts["engines"] == 0);
    CHECK(own.counts["runtimes"] == 0);
    CHECK(own.recording == nullptr);
}

void TensorRtTest::write_engines() const {
    std::filesystem::create_directories(engines());
    const auto opened = fopru::Bundle::open(bundle_, false);
    std::string listed;
    for (const auto& [graph, text] : files) {
        write(engines() + "/" + graph + ".engine", text);
        listed += (listed.empty() ? "" : ",") +
                  ("\"" + graph + "\": {\"file\": \"" + graph + ".engine\", \"bytes\": ") +
                  std::to_string(text.size()) + ", \"onnx\": \"" +
                  fopru::graph_hash(opened->manifest(), graph) + "\"}";
    }
    write(
        engines() + "/engines.json",
        R"({"format": 1, "created_by": "0", "identity": {"gpu": "rtx-3090", "sm": 86, "tensorrt": "10.3.0", )"
        R"("jetpack": null}, "plan": {"limits": {"max_images": 4, "max_prompt": 640, "max_new_tokens": 256, )"
        R"("ratio": null, "max_ratio": 0.5, "max_image_tokens": 1280, "unpruned": false}, )"
        R"("workspace": 1073741824}, "engines": {)" +
            listed + "}}");
}

void TensorRtTest::edit_record(const std::string& from, const std::string& to) const {
    std::string text = text_of(engines() + "/engines.json");
    const std::size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    write(engines() + "/engines.json", text.replace(at, from.size(), to));
}

std::unique_ptr<Session> TensorRtTest::open(Backend& backend, const std::string& graph) const {
    return backend.open(graph, graph_file(graph));
}

Held hold(Backend& backend, Dtype dtype, const Shape& shape) {
    Held held;
    held.buffer = backend.allocate(static_cast<std::size_t>(shape.elements()) * fopru::item_bytes(dtype));
    held.view.buffer = held.buffer.get();
    held.view.dtype = dtype;
    held.view.shape = shape;
    return held;
}

Held put(Backend& backend, const Shape& shape, const std::vector<float>& values) {
    Held held = hold(backend, Dtype::float32, shape);
    backend.upload(held.view, values.data());
    return held;
}

Held put(Backend& backend, const Shape& shape, const std::vector<std::int64_t>& values) {
    Held held = hold(backend, Dtype::int64, shape);
    backend.upload(held.view, values.data());
    return held;
}

std::vector<float> floats(Backend& backend, const View& view) {
    std::vector<float> values(static_cast<std::size_t>(view.shape.elements()));
    backend.download(values.data(), view);
    return values;
}

std::vector<std::int64_t> integers(Backend& backend, const View& view) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(view.shape.elements()));
    backend.download(values.data(), view);
    return values;
}

void set_input(const Session& session, Binding& binding, const std::string& name, const View& view) {
    binding.set_input(session.input(name), view);
}

void set_output(const Session& session, Binding& binding, const std::string& name, const View& view) {
    binding.set_output(session.output(name), view);
}

std::string error_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const fopru::BackendError& error) {
        return std::string("backend: ") + error.what();
    } catch (const fopru::EngineError& error) {
        return std::string("engine: ") + error.what();
    } catch (const fopru::BundleError& error) {
        return std::string("bundle: ") + error.what();
    }
    return "";
}

ToyDecoder::ToyDecoder(Backend& backend, Session& session, std::int64_t capacity)
    : backend_(backend),
      session_(session),
      binding_(session.bind()),
      embeds_(hold(backend, Dtype::float32, {1, 16, toy_hidden})),
      mask_(hold(backend, Dtype::int64, {1, capacity + 1})),
      positions_(hold(backend, Dtype::int64, {1, 16})),
      count_(put(backend, {}, std::vector<std::int64_t>{1})),
      logits_(hold(backend, Dtype::float32, {1, 1, toy_words})) {
    for (int tensor = 0; tensor < 2 * toy_layers; ++tensor) {
        cache_.push_back(hold(backend, Dtype::float32, {1, capacity, 1, toy_head}));
    }
    const std::vector<std::int64_t> ones(static_cast<std::size_t>(capacity + 1), 1);
    backend.upload(mask_.view, ones.data());
    set_input(session, *binding_, "num_logits_to_keep", count_.view);
    set_output(session, *binding_, "logits", logits_.view);
}

std::vector<float> ToyDecoder::run(const std::vector<std::int64_t>& tokens) {
    const auto rows = static_cast<std::int64_t>(tokens.size());
    std::vector<float> embeds;
    std::vector<std::int64_t> positions;
    for (std::size_t row = 0; row < tokens.size(); ++row) {
        for (int at = 0; at < toy_hidden; ++at) embeds.push_back(toy_weight(1, tokens[row], at));
        positions.push_back(length_ + static_cast<std::int64_t>(row));
    }
    embeds_.view.shape = {1, rows, toy_hidden};
    positions_.view.shape = {1, rows};
    mask_.view.shape = {1, length_ + rows};
    backend_.upload(embeds_.view, embeds.data());
    backend_.upload(positions_.view, positions.data());
    set_input(session_, *binding_, "inputs_embeds", embeds_.view);
    set_input(session_, *binding_, "position_ids", positions_.view);
    set_input(session_, *binding_, "attention_mask", mask_.view);
    std::size_t tensor = 0;
    for (int layer = 0; layer < toy_layers; ++layer) {
        for (const char* part : {"key", "value"}) {
            View view = cache_[tensor++].view;
            const std::string name = std::to_string(layer) + "." + part;
            view.shape = {1, length_, 1, toy_head};
            set_input(session_, *binding_, "past_key_values." + name, view);
            view.shape = {1, rows, 1, toy_head};
            view.offset = static_cast<std::size_t>(length_) * toy_head * sizeof(float);
            set_output(session_, *binding_, "present." + name, view);
        }
    }
    const std::int64_t before = news_of_backend();
    binding_->run();
    news_ += news_of_backend() - before;
    length_ += rows;
    return floats(backend_, logits_.view);
}

std::vector<float> expected_logits(const std::vector<std::int64_t>& tokens) {
    using Row = std::vector<double>;
    std::vector<Row> states;
    for (const std::int64_t token : tokens) {
        states.emplace_back();
        for (int at = 0; at < toy_hidden; ++at) states.back().push_back(toy_weight(1, token, at));
    }
    for (int layer = 0; layer < toy_layers; ++layer) {
        std::vector<Row> keys(states.size(), Row(toy_head)), values = keys;
        for (std::size_t row = 0; row < states.size(); ++row) {
            for (int out = 0; out < toy_head; ++out) {
                const auto place = static_cast<std::size_t>(out);
                keys[row][place] = 0.0625 * static_cast<double>(row);
                for (int at = 0; at < toy_hidden; ++at) {
                    const double state = states[row][static_cast<std::size_t>(at)];
                    keys[row][place] += state * toy_weight(2 + layer, at, out);
                    values[row][place] += state * toy_weight(4 + layer, out, at);
                }
            }
        }
        for (std::size_t row = 0; row < states.size(); ++row) {
            Row mixed(toy_head);
            double total = 0;
            for (std::size_t at = 0; at <= row; ++at) {
                double score = 0;
                for (std::size_t place = 0; place < toy_head; ++place)
                    score += keys[row][place] * keys[at][place];
                total += std::exp(score / 4);
                for (std::size_t place = 0; place < toy_head; ++place) {
                    mixed[place] += std::exp(score / 4) * values[at][place];
                }
            }
            for (std::size_t at = 0; at < toy_hidden; ++at) states[row][at] += mixed[at % toy_head] / total;
        }
    }
    std::vector<float> logits;
    for (int word = 0; word < toy_words; ++word) {
        double sum = 0;
        for (int at = 0; at < toy_hidden; ++at)
            sum += states.back()[static_cast<std::size_t>(at)] * toy_weight(6, word, at);
        logits.push_back(static_cast<float>(sum));
    }
    return logits;
}

}  // namespace fopru_double
