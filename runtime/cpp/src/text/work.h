// A bound on the steps that one call takes.
#pragma once

#include <cstddef>

namespace fopru {

// What the patterns and the parts of a tokenizer.json may still do in one call, whose text they get. They
// come from outside, and one of them can take a time that grows with the square of a text, or with 2 to its
// power. The tokenizers in use take about 6 steps per byte. Of one call, so of one thread.
class Work {
public:
    explicit Work(std::size_t bytes) { allow(bytes); }
    // More text to the same call.
    void allow(std::size_t bytes) {
        bytes_ += bytes;
        limit_ += bytes * steps_per_byte;
    }
    // False once the limit is passed.
    bool spend(std::size_t steps) {
        spent_ += steps;
        return spent_ <= limit_;
    }
    // For one part's way through `pieces` pieces of `bytes` bytes. RequestError once the limit is passed.
    void pass(std::size_t pieces, std::size_t bytes) {
        if (!spend(2 * pieces + bytes / 8)) refuse();
    }
    [[noreturn]] void refuse() const;

    std::size_t spent() const { return spent_; }
    std::size_t limit() const { return limit_; }
    std::size_t left() const { return spent_ < limit_ ? limit_ - spent_ : 0; }

private:
    static constexpr std::size_t steps_least = 8'000'000, steps_per_byte = 128;
    std::size_t bytes_ = 0, spent_ = 0, limit_ = steps_least;
};

}  // namespace fopru
