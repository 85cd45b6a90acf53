#include "double_device.h"

#include <sys/mman.h>

namespace fopru_double {

namespace {

constexpr std::size_t range = std::size_t{1} << 36;
constexpr std::size_t page = 4096;

// Addresses that no host memory has, and that end the program where the host reads them.
std::uintptr_t base() {
    static void* const reserved =
        ::mmap(nullptr, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return reserved == MAP_FAILED ? std::uintptr_t{1} << 40 : reinterpret_cast<std::uintptr_t>(reserved);
}

std::unique_ptr<Device>& current() {
    static std::unique_ptr<Device> own = std::make_unique<Device>();
    return own;
}

thread_local int uncounted = 0;
thread_local int own_gpu = 0;

}  // namespace

Uncounted::Uncounted() { ++uncounted; }
Uncounted::~Uncounted() { --uncounted; }
bool Uncounted::any() noexcept { return uncounted != 0; }

Device& device() { return *current(); }

int& current_gpu() { return own_gpu; }

void reset() {
    current() = std::make_unique<Device>();
    own_gpu = 0;
}

void* Device::allocate(std::size_t bytes) {
    if (bytes > total || used() > total - bytes) return nullptr;
    if (next_ == 0) next_ = (base() + page - 1) / page * page;
    const std::uintptr_t address = next_;
    next_ += (bytes + page - 1) / page * page + page;
    blocks_.emplace(address, std::vector<unsigned char>(bytes, 0xFF));
    return reinterpret_cast<void*>(address);
}

bool Device::release(void* address) { return blocks_.erase(reinterpret_cast<std::uintptr_t>(address)) != 0; }

unsigned char* Device::at(const void* address, std::size_t bytes) {
    const auto place = reinterpret_cast<std::uintptr_t>(address);
    auto after = blocks_.upper_bound(place);
    if (after == blocks_.begin()) throw Fault{};
    auto& [start, block] = *--after;
    const std::size_t offset = place - start;
    if (offset > block.size() || bytes > block.size() - offset) throw Fault{};
    return block.data() + offset;
}

bool Device::owns(const void* address) const {
    const auto place = reinterpret_cast<std::uintptr_t>(address);
    return place >= base() && place < base() + range;
}

std::size_t Device::used() const {
    std::size_t bytes = 0;
    for (const auto& block : blocks_) bytes += block.second.size();
    return bytes;
}

void Device::enqueue(std::function<void()> work) {
    if (recording != nullptr) {
        recording->push_back(std::move(work));
    } else {
        queue_.push_back(std::move(work));
    }
}

cudaError_t Device::drain() {
    while (!queue_.empty() && broken == cudaSuccess) {
        const std::function<void()> work = std::move(queue_.front());
        queue_.pop_front();
        try {
            work();
        } catch (const Fault&) {  // breaks the device for good, as CUDA's does
            broken = cudaErrorIllegalAddress;
        }
    }
    return broken;
}

void Device::on_own_gpu(const char* call) {
    if (gpu >= 0 && own_gpu != gpu) violate(std::string(call) + " on another GPU than the stream's");
}

cudaError_t Device::fails(const char* call) {
    ++counts[call];
    const auto found = failures.find(call);
    if (found == failures.end()) return cudaSuccess;
    if (found->second.first-- > 0) return cudaSuccess;
    const cudaError_t error = found->second.second;
    failures.erase(found);
    last_error = error;
    return error;
}

}  // namespace fopru_double
