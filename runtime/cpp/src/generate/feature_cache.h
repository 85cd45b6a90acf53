// Visual tokens kept from request to request: a picture that was encoded the same way runs no encoder.
// runtime/feature_cache.py, runtime/image_digest.py.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "vision/vision.h"

namespace fopru {

// The visual tokens of one image. `digest` is of what they were made from: equal digests, equal numbers.
struct VisualTokens {
    EncodedImage image;
    std::string digest;
};

using SharedTokens = std::shared_ptr<const VisualTokens>;

// SHA-256 of what the encoder and the prompt are made from: pixel values and plan. The plan is in it because
// pixels do not tell it: tiles of one shape may show pictures of two sizes.
std::string image_digest(const PreparedImage& image);
// `VisualTokens::digest` of what `graph` made of an image.
std::string tokens_digest(const PreparedImage& image, const std::string& graph, const EncodedImage& encoded);
std::uint64_t image_bytes(const EncodedImage& image);  // of its features and what goes with them

// The images used last, as many as fit in `limit` bytes; 0 keeps none. Belongs to one generator, so to one
// bundle, whose weights and strategy are therefore in no key. Not for two threads at once.
class FeatureCache {
public:
    using Images = std::vector<const PreparedImage*>;
    // Runs the encoder on some of the images; the unpruned one where there is no selection.
    using Encode = std::function<std::vector<SharedTokens>(const Images&, const std::optional<Selection>&)>;

    struct Found {
        std::vector<SharedTokens> tokens;
        std::int64_t reused = 0;  // images that were there already
    };

    explicit FeatureCache(std::uint64_t limit) : limit_(limit) {}

    // A key for each image, which takes reading all its pixels; none where nothing is kept.
    std::vector<std::string> keys(const Images& images, const std::optional<Selection>& selection) const;
    // `run` is called for the images that are not there, once for each row of neighbours: the seed of a unit
    // is its place among all units. Where it throws, or memory ends, images that were done before are kept.
    Found encode(const Images& images, const std::optional<Selection>& selection,
                 const std::vector<std::string>& keys, const Encode& run);
    void clear();
    std::uint64_t bytes() const { return bytes_; }
    std::size_t size() const { return kept_.size(); }

private:
    using Entry = std::pair<std::string, SharedTokens>;
    void keep(const std::string& key, const SharedTokens& tokens);

    std::uint64_t limit_;
    std::uint64_t bytes_ = 0;
    std::list<Entry> kept_;  // the one used last is the last
    std::unordered_map<std::string, std::list<Entry>::iterator> places_;
};

}  // namespace fopru
