#include "generate/feature_cache.h"

#include <algorithm>

#include "base/sha256.h"

namespace fopru {

namespace {

// Feeds values to a digest so that no two different values give the same bytes: lengths come first.
class Feed {
public:
    void add(std::int64_t value) {
        std::uint8_t bytes[8];
        for (int i = 0; i < 8; ++i)
            bytes[i] = static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * i));
        feed(bytes, sizeof bytes);
    }
    void add(const std::string& text) {
        add(static_cast<std::int64_t>(text.size()));
        hash_.update(text);
    }
    void add(const std::vector<std::int64_t>& values) {
        add(static_cast<std::int64_t>(values.size()));
        feed(values.data(), values.size() * sizeof(std::int64_t));
    }
    void add(const std::vector<float>& values) {
        add(static_cast<std::int64_t>(values.size()));
        feed(values.data(), values.size() * sizeof(float));
    }
    void add(const std::optional<Grid>& grid) {
        add(std::int64_t{grid.has_value()});
        if (!grid) return;
        add(std::int64_t{grid->first});
        add(std::int64_t{grid->second});
    }
    std::string digest() { return hash_.hex(); }

private:
    void feed(const void* data, std::size_t bytes) { hash_.update({static_cast<const char*>(data), bytes}); }
    Sha256 hash_;
};

void add_plan(Feed& feed, const ImagePlan& plan) {
    feed.add(static_cast<std::int64_t>(plan.units.size()));
    for (const Unit& unit : plan.units) {
        feed.add(unit.tokens);
        feed.add(unit.grid);
        feed.add(std::int64_t{unit.valid.has_value()});
        if (unit.valid) {
            for (const int side : *unit.valid) feed.add(std::int64_t{side});
        }
    }
    feed.add(plan.text);
    feed.add(plan.runs);
    feed.add(plan.sequence);
    feed.add(std::int64_t{plan.axes});
    feed.add(plan.offsets);
    feed.add(plan.spans);
    feed.add(std::int64_t{plan.lines.has_value()});
    if (plan.lines) feed.add(*plan.lines);
    for (const auto& [name, input] : plan.inputs) {
        feed.add(name);
        feed.add(input.shape);
        feed.add(input.values);
    }
    feed.add(std::int64_t{plan.overview.value_or(-1)});
    feed.add(plan.mosaic);
}

std::uint64_t item_bytes(const std::vector<std::int64_t>& values) {
    return values.size() * sizeof(std::int64_t);
}

// The selection of some of the images, with the seeds that their units have among all.
std::optional<Selection> part_of(const FeatureCache::Images& images,
                                 const std::optional<Selection>& selection, std::size_t first,
                                 std::size_t last) {
    if (!selection) return std::nullopt;
    Selection part{{selection->counts.begin() + first, selection->counts.begin() + last},
                   selection->selector,
                   selection->seed};
    for (std::size_t i = 0; i < first; ++i) part.seed += images[i]->plan.units.size();
    return part;
}

std::string key_of(const PreparedImage& image, const std::optional<Selection>& part) {
    Feed feed;
    feed.add(image_digest(image));
    feed.add(std::int64_t{part.has_value()});
    if (part) {
        feed.add(part->counts.front());
        feed.add(part->selector);
        if (part->selector == "random") feed.add(static_cast<std::int64_t>(part->seed));
    }
    return feed.digest();
}

}  // namespace

std::string image_digest(const PreparedImage& image) {
    Feed feed;
    add_plan(feed, image.plan);
    feed.add(image.pixels.shape);
    feed.add(image.pixels.values);
    return feed.digest();
}

std::string tokens_digest(const PreparedImage& image, const std::string& graph, const EncodedImage& encoded) {
    Feed feed;
    feed.add(image_digest(image));
    feed.add(graph);
    for (const auto& indices : encoded.kept) feed.add(indices);
    feed.add(encoded.assembly.source);
    return feed.digest();
}

std::uint64_t image_bytes(const EncodedImage& image) {
    const ImagePlan& plan = image.plan;
    std::uint64_t bytes =
        static_cast<std::uint64_t>(image.features.count * image.features.width) * sizeof(float);
    bytes += item_bytes(image.assembly.source) + item_bytes(image.assembly.places);
    for (const auto& indices : image.kept) bytes += item_bytes(indices);
    if (image.scores) {
        for (const auto& scores : *image.scores) bytes += scores.size() * sizeof(float);
    }
    bytes += item_bytes(plan.sequence) + item_bytes(plan.offsets);
    if (plan.lines) bytes += item_bytes(*plan.lines);
    for (const auto& [name, input] : plan.inputs) bytes += item_bytes(input.values);
    return bytes;
}

std::vector<std::string> FeatureCache::keys(const Images& images,
                                            const std::optional<Selection>& selection) const {
    std::vector<std::string> keys;
    if (limit_ == 0) return keys;
    for (std::size_t i = 0; i < images.size(); ++i) {
        keys.push_back(key_of(*images[i], part_of(images, selection, i, i + 1)));
    }
    return keys;
}

FeatureCache::Found FeatureCache::encode(const Images& images, const std::optional<Selection>& selection,
                                         const std::vector<std::string>& keys, const Encode& run) {
    if (keys.empty()) return {run(images, selection), 0};
    Found found{std::vector<SharedTokens>(images.size()), 0};
    std::vector<bool> missing(images.size());
    for (std::size_t i = 0; i < images.size(); ++i) {
        const auto kept = places_.find(keys[i]);
        if (kept != places_.end()) found.tokens[i] = kept->second->second;
        // The same picture twice in one request is encoded once.
        const bool before = std::find(keys.begin(), keys.begin() + i, keys[i]) != keys.begin() + i;
        missing[i] = !found.tokens[i] && !before;
        if (!missing[i]) ++found.reused;
    }
    for (std::size_t first = 0; first < images.size(); ++first) {
        if (!missing[first]) continue;
        std::size_t last = first;
        while (last < images.size() && missing[last]) ++last;
        const auto made =
            run({images.begin() + first, images.begin() + last}, part_of(images, selection, first, last));
        std::copy(made.begin(), made.end(), found.tokens.begin() + first);
        first = last;  // which is not missing
    }
    for (std::size_t i = 0; i < images.size(); ++i) {
        const std::size_t same = std::find(keys.begin(), keys.begin() + i, keys[i]) - keys.begin();
        found.tokens[i] = found.tokens[same];
        keep(keys[i], found.tokens[i]);
    }
    return found;
}

void FeatureCache::clear() {
    kept_.clear();
    places_.clear();
    bytes_ = 0;
}

// Makes an image the one used last.
void FeatureCache::keep(const std::string& key, const SharedTokens& tokens) {
    const auto known = places_.find(key);
    if (known != places_.end()) {
        kept_.splice(kept_.end(), kept_, known->second);
        return;
    }
    const std::uint64_t size = image_bytes(tokens->image);
    if (size > limit_) return;
    std::list<Entry> added;  // where memory ends here, nothing has changed
    added.emplace_back(key, tokens);
    places_.emplace(key, added.begin());
    kept_.splice(kept_.end(), added);
    bytes_ += size;
    while (bytes_ > limit_) {
        bytes_ -= image_bytes(kept_.front().second->image);
        places_.erase(kept_.front().first);
        kept_.pop_front();
    }
}

}  // namespace fopru
