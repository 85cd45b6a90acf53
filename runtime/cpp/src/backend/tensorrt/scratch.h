// One block of device memory for the intermediate results of all engines.
#pragma once

#include <cstddef>
#include <vector>

#include "backend/tensorrt/pool.h"

namespace fopru {

// What keeps intermediate results in the block; told when it moves.
class ScratchUser {
public:
    virtual ~ScratchUser() = default;
    virtual void use_scratch(void* address, std::size_t bytes) = 0;
};

// As large as the largest of its users needs: they run in turn, on one stream. The pool must outlive it, and
// users detach before they end.
class Scratch {
public:
    explicit Scratch(Pool& pool) : pool_(pool) {}
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* address() const {
        return block_.address;
    }  // null where none was needed; another one after it has grown
    std::size_t bytes() const { return bytes_; }
    void attach(ScratchUser& user,
                std::size_t bytes);  // BackendError: no memory; the user is not attached then
    void detach(ScratchUser& user);

private:
    void move_to(const Block& block, std::size_t bytes);

    Pool& pool_;
    Block block_;
    std::size_t bytes_ = 0;
    std::vector<ScratchUser*> users_;
};

}  // namespace fopru
