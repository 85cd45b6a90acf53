#include "backend/tensorrt/pool.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/error.h"

namespace fopru {

namespace {

constexpr std::size_t small = std::size_t{64} << 10, medium = std::size_t{4} << 20;
constexpr std::size_t least_idle = std::size_t{64} << 20;
constexpr std::size_t most_bytes = std::numeric_limits<std::size_t>::max() / 4;

std::size_t rounded(std::size_t bytes) {
    const std::size_t step = bytes < small ? 512 : bytes < medium ? small : std::size_t{2} << 20;
    return (bytes + step - 1) / step * step;
}

// A block this much larger than asked for may serve.
std::size_t with_spare(std::size_t bytes) { return bytes + bytes / 4; }

bool smaller(const Block& one, const Block& other) {
    return one.bytes != other.bytes ? one.bytes < other.bytes : one.address < other.address;
}

}  // namespace

Pool::~Pool() {
    // After the last buffer. A device that has failed says so elsewhere.
    while (!idle_.empty()) {
        try {
            free_largest();
        } catch (const BackendError&) {
        }
    }
    try {
        if (pinned_.address != nullptr) cuda_.free_host(pinned_.address);
    } catch (const BackendError&) {
    }
}

Block Pool::take(std::size_t bytes) {
    if (bytes > most_bytes) {
        throw BackendError(std::to_string(bytes) +
                           " bytes are asked for, more than there are addresses: ask for less");
    }
    const std::size_t wanted = rounded(std::max<std::size_t>(bytes, 1));
    auto best = idle_.end();
    for (auto own = idle_.begin(); own != idle_.end(); ++own) {
        if (own->bytes < wanted || own->bytes > with_spare(wanted)) continue;
        if (best == idle_.end() || smaller(*own, *best)) best = own;  // the same one for the same requests
    }
    Block block;
    if (best == idle_.end()) {
        block = new_block(wanted);
    } else {
        block = *best;
        idle_.erase(best);
    }
    most_used_ = std::max(most_used_, used());
    return block;
}

Block Pool::new_block(std::size_t wanted) {
    const std::size_t most = std::max(most_used_, used() + wanted);
    const std::size_t limit = std::max(with_spare(most), most + least_idle);
    while (!idle_.empty() && allocated_ + wanted > limit) free_largest();
    idle_.reserve(blocks_ + 1);  // `give` runs in destructors and must not throw
    void* address = cuda_.malloc(wanted);
    if (address == nullptr && !idle_.empty()) {
        trim();
        address = cuda_.malloc(wanted);
    }
    if (address == nullptr) {
        const auto [free, total] = cuda_.memory();
        throw BackendError(
            "the device has " + std::to_string(free >> 20) + " of " + std::to_string(total >> 20) +
            " MiB free, but " + std::to_string(wanted >> 20) +
            " MiB are needed in one piece: lower the ratio or max_new_tokens, or keep less between "
            "requests");
    }
    allocated_ += wanted;
    ++blocks_;
    return {address, wanted};
}

void Pool::give(const Block& block) noexcept { idle_.push_back(block); }

void* Pool::pinned(std::size_t bytes) {
    if (bytes > pinned_.bytes) {
        const std::size_t wanted = rounded(bytes);
        void* address = cuda_.malloc_host(wanted);
        const Block old = pinned_;
        pinned_ = {address, wanted};
        if (old.address != nullptr) cuda_.free_host(old.address);
    }
    return pinned_.address;
}

void Pool::trim() {
    while (!idle_.empty()) free_largest();
}

void Pool::free_largest() {
    const auto largest = std::max_element(idle_.begin(), idle_.end(), smaller);
    const Block block = *largest;
    idle_.erase(largest);
    allocated_ -= block.bytes;
    --blocks_;
    cuda_.free(block.address);
}

std::size_t Pool::used() const {
    std::size_t idle = 0;
    for (const Block& block : idle_) idle += block.bytes;
    return allocated_ - idle;
}

}  // namespace fopru
