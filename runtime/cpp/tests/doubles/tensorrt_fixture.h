// A bundle with toy engines for the make-believe GPU, and what every test looks at when it ends.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/tensorrt/tensorrt_backend.h"
#include "base/json.h"
#include "double_device.h"

namespace fopru_double {

// Engines of the three graphs, of an RTX 3090 with TensorRT 10.3.0, in a copy of a bundle. When it ends,
// nothing may be left on the device, and nothing may have been done that must not be done.
class TensorRtTest {
public:
    TensorRtTest();
    ~TensorRtTest();
    TensorRtTest(const TensorRtTest&) = delete;
    TensorRtTest& operator=(const TensorRtTest&) = delete;

    const std::string& bundle() const { return bundle_; }
    std::string engines() const { return bundle_ + "/engines/" + tag; }  // the folder of this device
    std::string graph_file(const std::string& graph) const { return bundle_ + "/onnx/" + graph + ".onnx"; }
    // Engines by graph as they will be written, and what is written beside them.
    std::map<std::string, std::string> files;
    void write_engines() const;  // files and record
    // The record with one text in the place of another.
    void edit_record(const std::string& from, const std::string& to) const;

    std::unique_ptr<fopru::Session> open(fopru::Backend& backend, const std::string& graph) const;

    static constexpr const char* tag = "rtx-3090-sm86-trt10.3.0";
    static constexpr const char* vision = "vision_encoder_fopru";
    static constexpr const char* embed = "embed_tokens";
    static constexpr const char* decoder = "decoder_model_portable";

private:
    std::string root_, bundle_;
};

// Device memory with a view of all of it.
struct Held {
    std::unique_ptr<fopru::Buffer> buffer;
    fopru::View view;
};

Held hold(fopru::Backend& backend, fopru::Dtype dtype, const fopru::Shape& shape);
Held put(fopru::Backend& backend, const fopru::Shape& shape, const std::vector<float>& values);
Held put(fopru::Backend& backend, const fopru::Shape& shape, const std::vector<std::int64_t>& values);
std::vector<float> floats(fopru::Backend& backend, const fopru::View& view);
std::vector<std::int64_t> integers(fopru::Backend& backend, const fopru::View& view);

void set_input(const fopru::Session& session, fopru::Binding& binding, const std::string& name,
               const fopru::View& view);
void set_output(const fopru::Session& session, fopru::Binding& binding, const std::string& name,
                const fopru::View& view);

// The message of the error that a call throws, with its kind in front: "backend: ..."; "" where it throws
// none.
std::string error_of(const std::function<void()>& call);

// The toy decoder with a cache of kind `append`: new rows are bound behind the old ones.
class ToyDecoder {
public:
    ToyDecoder(fopru::Backend& backend, fopru::Session& session, std::int64_t capacity);

    std::vector<float> run(const std::vector<std::int64_t>& tokens);  // logits of the last
    void forget() { length_ = 0; }
    std::int64_t length() const { return length_; }
    // How often the runs so far asked for host memory.
    std::int64_t news() const { return news_; }

private:
    fopru::Backend& backend_;
    fopru::Session& session_;
    std::unique_ptr<fopru::Binding> binding_;
    std::vector<Held> cache_;
    Held embeds_, mask_, positions_, count_, logits_;
    std::int64_t length_ = 0, news_ = 0;
};

// Logits of the last token of a sequence, computed without a cache.
std::vector<float> expected_logits(const std::vector<std::int64_t>& tokens);

}  // namespace fopru_double
