#include "backend/tensorrt/scratch.h"

#include <algorithm>

#include "base/error.h"

namespace fopru {

Scratch::~Scratch() {
    if (block_.address != nullptr) pool_.give(block_);
}

void Scratch::attach(ScratchUser& user, std::size_t bytes) {
    users_.reserve(users_.size() + 1);
    if (bytes > bytes_) {
        const std::size_t before = bytes_;
        // Back to the pool before the larger one is taken, which may need its memory.
        if (block_.address != nullptr) pool_.give(block_);
        block_ = {};
        bytes_ = 0;
        try {
            move_to(pool_.take(bytes), bytes);
        } catch (const BackendError&) {
            move_to(before == 0 ? Block{} : pool_.take(before), before);
            throw;
        }
    }
    users_.push_back(&user);
    if (block_.address != nullptr) user.use_scratch(block_.address, bytes_);
}

void Scratch::detach(ScratchUser& user) {
    users_.erase(std::remove(users_.begin(), users_.end(), &user), users_.end());
}

void Scratch::move_to(const Block& block, std::size_t bytes) {
    block_ = block;
    bytes_ = bytes;
    for (ScratchUser* other : users_) other->use_scratch(block.address, bytes);
}

}  // namespace fopru
