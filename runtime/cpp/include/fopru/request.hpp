// A question for a generator. See fopru.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fopru/objects.hpp"

namespace fopru {
inline namespace api {  // not the names inside the library, should both be linked into one program

// A question. Texts are copied; images and encoded tokens must outlive the calls that use it. What has no
// setter of its own is set in `values()`.
class Request {
public:
    explicit Request(std::string prompt) : prompt_(std::move(prompt)) {}

    Request& image(const Image& image) { return images_.push_back(image.get()), *this; }
    // An earlier turn, oldest first.
    Request& turn(std::string prompt, const std::vector<const Image*>& images, std::string answer) {
        Turn past{std::move(prompt), {}, std::move(answer)};
        for (const Image* image : images) past.images.push_back(image->get());
        history_.push_back(std::move(past));
        return *this;
    }
    Request& ratio(double kept) { return values_.ratio = kept, *this; }          // fraction KEPT
    Request& tokens(std::int64_t kept) { return values_.tokens = kept, *this; }  // KEPT per image
    Request& selector(std::string name) { return selector_ = std::move(name), *this; }
    Request& max_new_tokens(std::int64_t most) { return values_.max_new_tokens = most, *this; }
    Request& temperature(double value) { return values_.temperature = value, *this; }
    Request& seed(std::uint64_t value) { return values_.seed = value, *this; }
    Request& stop(std::string text) { return stop_.push_back(std::move(text)), *this; }
    Request& encoded(const Encoded& tokens) { return values_.encoded = tokens.get(), *this; }
    fopru_request& values() { return values_; }  // numbers; pointers are overwritten by `view`

    // Calls `use` with the request as fopru.h has it, valid during the call.
    template <class Use>
    auto view(const Use& use) const {
        std::vector<fopru_turn> turns;
        for (const Turn& own : history_) {
            turns.push_back({own.prompt.c_str(), own.images.data(), own.images.size(), own.answer.c_str()});
        }
        std::vector<const char*> stops;
        for (const std::string& text : stop_) stops.push_back(text.c_str());
        fopru_request request = values_;
        request.prompt = prompt_.c_str();
        request.selector = selector_.c_str();
        request.images = images_.data();
        request.image_count = images_.size();
        request.history = turns.data();
        request.history_count = turns.size();
        request.stop = stops.data();
        request.stop_count = stops.size();
        return use(&request);
    }

private:
    struct Turn {
        std::string prompt;
        std::vector<const fopru_image*> images;
        std::string answer;
    };
    fopru_request values_ = fopru_request_default();
    std::string prompt_, selector_ = "graph";
    std::vector<const fopru_image*> images_;
    std::vector<Turn> history_;
    std::vector<std::string> stop_;
};

}  // namespace api
}  // namespace fopru
