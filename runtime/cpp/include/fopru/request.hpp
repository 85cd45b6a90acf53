// A question for a generator. See fopru.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fopru/objects.hpp"

namespace fopru {
inline namespace api {  // not the names inside the library, should both be linked into one program

// How a generator works. What is not set has the default of `fopru_options`.
class Options {
public:
    Options& backend(std::string name) { return backend_ = std::move(name), *this; }
    Options& threads(int count) { return values_.threads = count, *this; }  // inside an operator
    Options& engines(std::string folder) { return engines_ = std::move(folder), *this; }  // TensorRT
    Options& reuse_features(std::uint64_t bytes) { return values_.reuse_features = bytes, *this; }
    Options& reuse_prefix(bool keep) { return values_.reuse_prefix = keep ? 1 : 0, *this; }

    // As fopru.h has them, valid as long as this object does not change.
    fopru_options view() const {
        fopru_options options = values_;
        if (!backend_.empty()) options.backend = c_text(backend_);
        if (!engines_.empty()) options.engines = c_text(engines_);
        return options;
    }

private:
    fopru_options values_ = fopru_options_default();
    std::string backend_, engines_;
};

// A question. It owns its texts, and shares images and visual tokens, so they may go out of scope.
class Request {
public:
    explicit Request(std::string prompt) : prompt_(std::move(prompt)) {}

    Request& image(Image image) { return images_.push_back(std::move(image)), *this; }
    // An earlier turn, oldest first.
    Request& turn(std::string prompt, std::vector<Image> images, std::string answer) {
        return history_.push_back({std::move(prompt), std::move(images), std::move(answer)}), *this;
    }
    // Fraction, or number per image, of visual tokens KEPT; with neither, the bundle's default. Failure: 0,
    // which in fopru.h means that it is not given.
    Request& ratio(double kept) {
        if (kept != 0.0) return values_.ratio = kept, *this;
        throw Failure(
            FOPRU_REQUEST_ERROR,
            "ratio is 0.0, but it is the fraction of tokens kept: give a number in (0, 1], e.g. 0.3");
    }
    Request& tokens(std::int64_t kept) {
        if (kept != 0) return values_.tokens = kept, *this;
        throw Failure(FOPRU_REQUEST_ERROR,
                      "tokens is 0, but an image keeps at least 1: leave it out for the default");
    }
    Request& selector(std::string name) { return selector_ = std::move(name), *this; }
    Request& max_new_tokens(std::int64_t most) { return values_.max_new_tokens = most, *this; }
    Request& temperature(double value) { return values_.temperature = value, *this; }  // 0: greedy
    Request& top_k(std::int64_t most) { return values_.top_k = most, *this; }
    Request& top_p(double value) { return values_.top_p = value, *this; }
    Request& min_p(double value) { return values_.min_p = value, *this; }
    Request& repetition_penalty(double value) { return values_.repetition_penalty = value, *this; }
    Request& seed(std::uint64_t value) { return values_.seed = value, *this; }
    Request& stop(std::string text) { return stop_.push_back(std::move(text)), *this; }  // one more of them
    Request& ignore_eos(bool on = true) { return values_.ignore_eos = on ? 1 : 0, *this; }
    // Visual tokens of the first images, counted from the oldest turn, instead of encoding what is there. A
    // request without images is about all of these.
    Request& encoded(Encoded tokens) { return encoded_ = std::move(tokens), *this; }

    // Calls `use` with the request as fopru.h has it, valid during the call.
    template <class Use>
    auto view(const Use& use) const {
        std::vector<Pointers> pictures;
        std::size_t images = images_.size();
        pictures.reserve(history_.size());
        std::vector<fopru_turn> turns;
        for (const Turn& own : history_) {
            pictures.push_back(pointers(own.images));
            images += own.images.size();
            turns.push_back(
                {c_text(own.prompt), pictures.back().data(), own.images.size(), c_text(own.answer)});
        }
        std::vector<const char*> stops;
        for (const std::string& text : stop_) stops.push_back(c_text(text));
        Pointers current = pointers(images_);
        if (encoded_ && images == 0) current.resize(encoded_->images());
        fopru_request request = values_;
        request.prompt = c_text(prompt_);
        request.selector = c_text(selector_);
        request.images = current.data();
        request.image_count = current.size();
        request.history = turns.data();
        request.history_count = turns.size();
        request.stop = stops.data();
        request.stop_count = stops.size();
        request.encoded = encoded_ ? encoded_->get() : nullptr;
        return use(&request);
    }

private:
    using Pointers = std::vector<const fopru_image*>;
    struct Turn {
        std::string prompt;
        std::vector<Image> images;
        std::string answer;
    };
    static Pointers pointers(const std::vector<Image>& images) {
        Pointers given;
        for (const Image& image : images) given.push_back(image.get());
        return given;
    }

    fopru_request values_ = fopru_request_default();
    std::string prompt_, selector_ = "graph";
    std::vector<Image> images_;
    std::vector<Turn> history_;
    std::vector<std::string> stop_;
    std::optional<Encoded> encoded_;
};

}  // namespace api
}  // namespace fopru
