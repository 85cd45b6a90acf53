// Which engine is taken, and which are refused with what sentence. tests/test_cpp_tensorrt.py holds the
// sentences against those of the Python runtime.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "backend/tensorrt/engine_files.h"
#include "backend/tensorrt/identity.h"
#include "bundle/bundle.h"
#include "tensorrt_fixture.h"

using namespace fopru_double;
using fopru::EngineIdentity;
using namespace std::string_literals;

namespace {

// What follows the path of the bundle in a message, so that tests need not know it.
std::string without(std::string text, const std::string& path) {
    for (std::size_t at = text.find(path); at != std::string::npos; at = text.find(path))
        text.replace(at, path.size(), "B");
    return text;
}

struct Root {
    Root() : path(std::filesystem::temp_directory_path() / ("fopru-root-" + std::to_string(::getpid()))) {}
    ~Root() { std::filesystem::remove_all(path); }
    void write(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories((path / name).parent_path());
        std::ofstream(path / name, std::ios::binary) << text;
    }
    std::filesystem::path path;
};

}  // namespace

TEST_CASE("JetPack from the kernel's release file") {
    const auto release = [](const std::string& words) {
        return fopru::jetpack_of("# " + words + ", GCID: 1");
    };
    CHECK(release("R36 (release), REVISION: 4.3") == "6.2");
    CHECK(release("R36 (release), REVISION: 4.4") == "6.2.1");
    CHECK(release("R36 (release), REVISION: 5") == "6.2.2");
    CHECK(release("R36 (release), REVISION: 4.0") == "6.1");
    CHECK(release("R38 (release), REVISION: 4.0") == "7.1");
    CHECK(release("R39 (release), REVISION: 2.1") == "7.2.1");
    CHECK(release("R39 (release), REVISION: 1.0") == "7.2");
    CHECK(release("R32 (release), REVISION: 7.1") == "l4t32.7");
    CHECK_FALSE(release("RELEASE").has_value());
    CHECK_FALSE(release("R36 (release), REVISION: x").has_value());
    CHECK_FALSE(fopru::jetpack_of("").has_value());
    CHECK(release("R R36 (release), REVISION: 99999999.1").has_value() == true);
}

TEST_CASE("what a device is") {
    const Root root;
    const std::string at = root.path.string();
    EngineIdentity own = fopru::identity_of("NVIDIA GeForce RTX 3090", 86, "10.3.0", at);
    CHECK(own.tag() == "rtx-3090-sm86-trt10.3.0");
    CHECK(own.text() == "rtx-3090 (SM86), TensorRT 10.3.0");
    CHECK(fopru::identity_of("NVIDIA H100 80GB HBM3", 90, "11.1.0", at).gpu == "h100-80gb-hbm3");
    CHECK(fopru::identity_of("", 0, "", at).gpu.empty());

    root.write("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic");
    root.write("proc/device-tree/compatible",
               "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"s);
    own = fopru::identity_of("Orin", 87, "10.3.0", at);
    CHECK(own.tag() == "orin-sm87-trt10.3.0-jp6.2");
    CHECK(own.text() == "orin (SM87), TensorRT 10.3.0, JetPack 6.2");
    root.write("proc/device-tree/compatible", "nvidia,tegra\0nvidia,tegra999\0nvidia,tegra264"s);
    CHECK(fopru::identity_of("Thor", 0, "10.13.3", at).sm == 110);
}

TEST_CASE_FIXTURE(TensorRtTest, "engines of the device are found in the bundle or in a folder") {
    auto backend = fopru::make_tensorrt_backend({});
    CHECK(open(*backend, embed)->inputs().size() == 1);
    backend.reset();

    const std::string elsewhere = bundle() + "/elsewhere";
    std::filesystem::rename(bundle() + "/engines", elsewhere);
    for (const std::string& folder : {elsewhere, elsewhere + "/" + tag}) {
        fopru::BackendOptions options;
        options.engines = folder;
        backend = fopru::make_tensorrt_backend(options);
        CHECK(open(*backend, vision)->inputs().size() == 2);
    }
}

TEST_CASE_FIXTURE(TensorRtTest, "a wrong engine is refused with the command that builds the right one") {
    auto backend = fopru::make_tensorrt_backend({});
    const auto refused = [&](const char* graph) {
        return without(error_of([&] { open(*backend, graph); }), bundle());
    };
    const std::string run = ": run `python -m runtime.engine B`";
    const std::string folder = std::string("B/engines/") + tag;

    SUBCASE("none") {
        std::filesystem::remove_all(bundle() + "/engines");
        CHECK(refused(embed) == "engine: B has no engines for rtx-3090 (SM86), TensorRT 10.3.0" + run);
    }
    SUBCASE("those of other devices") {
        std::filesystem::rename(engines(), bundle() + "/engines/orin-sm87-trt10.3.0-jp6.2");
        std::filesystem::create_directories(bundle() + "/engines/.half/x");
        CHECK(refused(embed) ==
              "engine: B has no engines for rtx-3090 (SM86), TensorRT 10.3.0 (it has some for "
              "orin-sm87-trt10.3.0-jp6.2)" +
                  run);
    }
    SUBCASE("a folder that was renamed") {
        edit_record("\"sm\": 86", "\"sm\": 89");
        CHECK(refused(embed) ==
              "engine: " + folder +
                  " holds engines for rtx-3090 (SM89), TensorRT 10.3.0, but this "
                  "is rtx-3090 (SM86), TensorRT 10.3.0, and an engine runs where it was built only" +
                  run);
    }
    SUBCASE("another version of TensorRT") {
        edit_record("\"10.3.0\"", "\"10.13.3\"");
        CHECK(refused(embed).find("holds engines for rtx-3090 (SM86), TensorRT 10.13.3, but") !=
              std::string::npos);
    }
    SUBCASE("a graph that has changed") {
        const std::string hash = fopru::graph_hash(fopru::Bundle::open(bundle(), false)->manifest(), vision);
        edit_record(hash, std::string(64, '0'));
        CHECK(refused(vision) == std::string("engine: the bundle's ") + vision + " has changed since " +
                                     folder + "/" + vision + ".engine was built from it" + run);
    }
    SUBCASE("a file that is cut off") {
        std::filesystem::resize_file(engines() + "/embed_tokens.engine", 10);
        CHECK(refused(vision) == "engine: " + folder +
                                     "/embed_tokens.engine is absent or has another size than "
                                     "engines.json says" +
                                     run);
    }
    SUBCASE("a graph without an engine") {
        CHECK(refused("vision_encoder") ==
              "engine: " + folder +
                  " has no engine of vision_encoder, only of decoder_model_portable, embed_tokens, "
                  "vision_encoder_fopru: run `python -m runtime.engine B --max-prompt 640 --max-ratio 0.5 "
                  "--workspace "
                  "1024MiB --unpruned`");
        CHECK(refused("decoder_model_merged").find("--workspace 1024MiB`") != std::string::npos);
    }
    SUBCASE("a file that is no graph of the bundle") {
        const std::string error =
            without(error_of([&] { backend->open("x", bundle() + "/onnx/other.onnx"); }), bundle());
        CHECK(error.find("engine: B/onnx/other.onnx is no graph of the bundle B: give one of onnx/") == 0);
        CHECK(error_of([&] { backend->open("x", "/nowhere/onnx/other.onnx"); }).find("bundle: ") == 0);
    }
}

TEST_CASE_FIXTURE(TensorRtTest, "a record from elsewhere is read with care") {
    auto backend = fopru::make_tensorrt_backend({});
    const auto refused = [&] { return without(error_of([&] { open(*backend, embed); }), bundle()); };
    const std::string start = std::string("engine: B/engines/") + tag + "/engines.json ";

    SUBCASE("format") {
        edit_record("\"format\": 1", "\"format\": 2");
        CHECK(refused() == start + "has format 2, expected 1: run `python -m runtime.engine B`");
    }
    SUBCASE("no format") {
        edit_record("\"format\"", "\"form\"");
        CHECK(refused() == start + "has format None, expected 1: run `python -m runtime.engine B`");
    }
    SUBCASE("a name that leads out of the folder") {
        edit_record("\"embed_tokens.engine\"", "\"../../../engine\"");
        CHECK(refused() ==
              start +
                  "cannot be read (engines.embed_tokens.file is \"../../../engine\", expected the "
                  "name of a file in the same folder): run `python -m runtime.engine B`");
    }
    SUBCASE("not JSON") {
        edit_record("{", "");
        CHECK(refused().find(start + "cannot be read (") == 0);
    }
    SUBCASE("a key too many") {
        edit_record("\"bytes\"", "\"x\": 1, \"bytes\"");
        CHECK(refused().find(start + "cannot be read (engines.decoder_model_portable") == 0);
    }
    SUBCASE("a size below zero") {
        edit_record("\"bytes\": ", "\"bytes\": -");
        CHECK(refused().find("is absent or has another size") != std::string::npos);
    }
    SUBCASE("no identity") {
        edit_record("\"identity\"", "\"someone\"");
        CHECK(refused().find(start + "cannot be read (identity") == 0);
    }
}

TEST_CASE_FIXTURE(TensorRtTest, "an engine that TensorRT does not load") {
    auto backend = fopru::make_tensorrt_backend({});
    const auto refused = [&] { return without(error_of([&] { open(*backend, embed); }), bundle()); };
    const std::string engine = std::string("the engine B/engines/") + tag + "/embed_tokens.engine";

    files[embed] = "not an engine";
    write_engines();
    CHECK(refused() == "backend: tensorrt cannot load " + engine +
                           ": Serialization assertion magicTagRead == "
                           "kMAGIC_TAG failed.; build it again with `python -m runtime.engine`");
    files[embed] = "";
    write_engines();
    CHECK(refused() == "backend: tensorrt cannot load " + engine +
                           ": it is empty; build it again with `python -m "
                           "runtime.engine`");
}

TEST_CASE_FIXTURE(TensorRtTest, "an engine with tensors that the runtime does not know") {
    auto backend = fopru::make_tensorrt_backend({});
    const auto refused = [&](int type, const std::string& dims) {
        files[embed] =
            R"({"toy": "copy", "scratch": 0, "profiles": [{}], "tensors": [{"name": "x", "type": )" +
            std::to_string(type) + ", \"dims\": " + dims + ", \"input\": true}]}";
        write_engines();
        return error_of([&] { open(*backend, embed); });
    };
    CHECK(refused(3, "[1]") ==
          "backend: tensor x of embed_tokens is INT32, expected one of FLOAT, HALF, BF16, INT64, "
          "BOOL: build the bundle with inputs and outputs of these");
    CHECK(refused(2, "[1]").find("is INT8,") != std::string::npos);
    CHECK(refused(5, "[1]").find("is UINT8,") != std::string::npos);
    CHECK(refused(6, "[1]").find("is FP8,") != std::string::npos);
    CHECK(refused(9, "[1]").find("is of another type,") != std::string::npos);
    CHECK(refused(0, "[1, 1, 1, 1, 1, 1, 1]") ==
          "backend: tensor x of embed_tokens has 7 dims, expected 0 to 6: build "
          "the bundle with others");
    for (const int type : {0, 1, 4, 7, 8}) CHECK(refused(type, "[1]").empty());
    // A profile that says nothing of an input that varies.
    CHECK(refused(0, "[-1]") ==
          "backend: profile 0 of embed_tokens for x has -1 dims, expected 0 to 6: build the "
          "bundle with others");
}
