#include "backend/tensorrt/recorded.h"

#include <algorithm>

#include "base/error.h"

namespace fopru {

namespace {

constexpr std::size_t most_runs = 32;  // blocks of 256 rows of a few decoders

RunKey::Place place_of(const Engine& engine, const View& view, bool host) {
    DeviceBuffer& buffer = buffer_of(view);
    RunKey::Place place{&engine, address_of(view), view.shape, {}};
    if (host && buffer.host() != nullptr) {
        const unsigned char* values = buffer.host() + view.offset;
        place.values.assign(values, values + bytes_of(view));
    }
    return place;
}

RunKey key_of(const std::vector<TrtBinding*>& bindings) {
    RunKey key;
    key.scratch = bindings.back()->session().device().scratch.address();
    for (const TrtBinding* binding : bindings) {
        const Engine& engine = binding->session().engine();
        for (std::size_t input = 0; input < binding->inputs().size(); ++input) {
            key.places.push_back(place_of(engine, binding->inputs()[input], engine.on_host(input)));
        }
        for (const View& view : binding->outputs()) key.places.push_back(place_of(engine, view, false));
    }
    return key;
}

}  // namespace

bool RunKey::Place::operator==(const Place& other) const {
    return engine == other.engine && address == other.address && shape == other.shape &&
           values == other.values;
}

bool RunKey::has(const Engine& engine) const {
    return std::any_of(places.begin(), places.end(), [&](const Place& own) { return own.engine == &engine; });
}

RecordedRun::RecordedRun(const std::vector<TrtBinding*>& bindings) {
    // All first: the scratch block may grow for one of them, and a run before that would not count.
    for (TrtBinding* binding : bindings)
        contexts_.push_back(binding->session().own_context(binding->inputs()));
    key = key_of(bindings);
    Cuda& cuda = bindings.back()->session().device().cuda;
    try {
        for (std::size_t place = 0; place < bindings.size(); ++place) {
            bindings[place]->bind_aligned(*contexts_[place]);
            contexts_[place]->enqueue();
        }
    } catch (const BackendError&) {
        cuda.synchronize();  // the runs before may still use their contexts
        throw;
    }
    try {
        launch_ = cuda.capture([this] {
            for (const auto& context : contexts_) context->enqueue();
        });
    } catch (const BackendError& error) {
        refusal_ = error.what();
        cuda.synchronize();  // the first run may still use the contexts
    }
}

void RecordedRun::enqueue() { launch_->run(); }

Replay::Replay(std::vector<TrtBinding*> bindings) : bindings_(std::move(bindings)) {
    if (bindings_.empty() || std::count(bindings_.begin(), bindings_.end(), nullptr) != 0) {
        throw BackendError("nothing is given to record: give one binding or more");
    }
    Device& device = bindings_.back()->session().device();
    for (const TrtBinding* binding : bindings_) {
        if (&binding->session().device() != &device) {
            throw BackendError("bindings of two backends cannot be recorded together: give those of one");
        }
    }
    const Use turn(device);
    for (const TrtBinding* binding : bindings_) binding->complete();
    find();
}

void Replay::run() {
    Device& device = bindings_.back()->session().device();
    if (refusal_.empty()) {
        const Use turn(device);
        std::shared_ptr<RecordedRun> found = run_.lock();
        if (found == nullptr || found->key.scratch != device.scratch.address()) found = find();
        if (found != nullptr) {
            found->enqueue();
            for (TrtBinding* binding : bindings_) binding->forget_outputs();
            return;
        }
    }
    for (TrtBinding* binding : bindings_) binding->run();
}

std::shared_ptr<RecordedRun> Replay::find() {
    Device& device = bindings_.back()->session().device();
    auto& runs = device.recorded;
    const RunKey key = key_of(bindings_);
    auto found = std::find_if(runs.begin(), runs.end(), [&](const auto& own) { return own->key == key; });
    if (found == runs.end()) {
        auto made = std::make_shared<RecordedRun>(bindings_);
        if (!made->refusal().empty()) {
            refusal_ = made->refusal();
            return nullptr;
        }
        runs.push_front(std::move(made));
        if (runs.size() > most_runs) {
            device.cuda.synchronize();  // it may still run
            runs.pop_back();
        }
    } else {
        runs.splice(runs.begin(), runs, found);
    }
    run_ = runs.front();
    return runs.front();
}

}  // namespace fopru
