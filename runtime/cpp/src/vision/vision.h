// Visual tokens of images: which graph runs, in which calls, and what goes on. runtime/vision.py.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bundle/manifest.h"
#include "decode/decoder_run.h"
#include "pruning/pruning.h"

namespace fopru {

constexpr int most_units = 8;  // of a call

struct Selection {
    Counts counts;
    std::string selector = "graph";
    std::uint64_t seed = 0;
};

// An image after the encoder. `features` stay on the device of the backend.
struct EncodedImage {
    ImagePlan plan;
    Rows features;
    Assembly assembly;
    std::vector<std::vector<std::int64_t>> kept;            // by unit, counted from 0
    std::optional<std::vector<std::vector<float>>> scores;  // by unit, where the graph gives them
    std::vector<std::int64_t> kept_indices() const;         // counted through all units
};

// Opens a graph by its contract name, on first use.
using OpenGraph = std::function<Session&(const std::string&)>;

// Not for two threads at once.
class VisionEncoder {
public:
    VisionEncoder(Backend& backend, OpenGraph open, const Manifest& manifest,
                  std::optional<std::vector<float>> newline);
    ~VisionEncoder();
    std::string graph_for(const Selection& selection) const;
    // Images are taken one behind the other; units of equal shape and K share a call. RequestError,
    // BackendError.
    std::vector<EncodedImage> encode(const std::vector<const PreparedImage*>& images,
                                     const Selection& selection);
    std::vector<EncodedImage> encode_unpruned(const std::vector<const PreparedImage*>& images);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace fopru
