#include "backend/tensorrt/session.h"

#include <NvInferRuntime.h>

#include "backend/tensorrt/recorded.h"
#include "base/error.h"

namespace fopru {

namespace {

constexpr std::size_t most_values = 256;  // bytes of a shape tensor

bool aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % alignment == 0; }

std::string names_of(const TrtSession& session) {
    std::string names;
    for (const auto* tensors : {&session.inputs(), &session.outputs()}) {
        for (const TensorName& own : *tensors) names += (names.empty() ? "" : ", ") + own.name;
    }
    return names;
}

}  // namespace

TrtSession::TrtSession(std::shared_ptr<Device> device, std::unique_ptr<Engine> engine)
    : device_(std::move(device)),
      engine_(std::move(engine)),
      contexts_(static_cast<std::size_t>(engine_->get().getNbOptimizationProfiles())),
      staging_(engine_->inputs().size() + engine_->outputs().size()) {}

TrtSession::~TrtSession() {
    const Use turn(*device_);
    try {
        device_->cuda.synchronize();  // before contexts go that still run
    } catch (const BackendError&) {   // a device that has failed says so elsewhere
    }
    device_->recorded.remove_if([&](const auto& run) { return run->key.has(*engine_); });
    contexts_.clear();
    for (const Block& block : staging_) {
        if (block.address != nullptr) device_->pool.give(block);
    }
    engine_.reset();
}

std::unique_ptr<Binding> TrtSession::bind() { return std::make_unique<TrtBinding>(*this); }

std::int64_t TrtSession::greatest(int index, int axis) const {
    const auto place = static_cast<std::size_t>(index);
    if (index < 0 || place >= inputs().size()) return Session::greatest(index, axis);
    const std::int64_t most = engine_->greatest(place, axis);
    return most < 0 ? Session::greatest(index, axis) : most;
}

Context& TrtSession::context(const std::vector<View>& inputs) {
    const int profile = engine_->profile_for(inputs);
    std::unique_ptr<Context>& found = contexts_[static_cast<std::size_t>(profile)];
    if (found == nullptr) found = std::make_unique<Context>(*device_, *engine_, profile);
    return *found;
}

std::unique_ptr<Context> TrtSession::own_context(const std::vector<View>& inputs) {
    return std::make_unique<Context>(*device_, *engine_, engine_->profile_for(inputs));
}

void* TrtSession::staging(std::size_t place, std::size_t bytes) {
    Block& block = staging_[place];
    if (block.address == nullptr || bytes > block.bytes) {
        if (block.address != nullptr) device_->pool.give(block);
        block = {};
        block = device_->pool.take(bytes);
    }
    return block.address;
}

TrtBinding::TrtBinding(TrtSession& session)
    : session_(session), inputs_(session.inputs().size()), outputs_(session.outputs().size()) {
    places_.inputs.resize(inputs_.size());
    places_.outputs.resize(outputs_.size());
}

void TrtBinding::set_input(int index, const View& view) { set(inputs_, session_.inputs(), index, view); }

void TrtBinding::set_output(int index, const View& view) { set(outputs_, session_.outputs(), index, view); }

void TrtBinding::set(std::vector<View>& views, const std::vector<TensorName>& tensors, int index,
                     const View& view) {
    const auto place = static_cast<std::size_t>(index);
    if (index < 0 || place >= tensors.size()) {
        throw BackendError(session_.engine().name() + " has no tensor at place " + std::to_string(index) +
                           ", only " + names_of(session_));
    }
    if (view.dtype != tensors[place].dtype) {
        throw BackendError(tensors[place].name + " of " + session_.engine().name() + " is " +
                           name_of(tensors[place].dtype) + ", but a buffer of " + name_of(view.dtype) +
                           " is bound: convert it");
    }
    buffer_of(view, session_.device());
    views[place] = view;
}

void TrtBinding::run() {
    Device& device = session_.device();
    const Use turn(device);
    complete();
    Context& context = session_.context(inputs_);
    find_places(context, true);
    context.bind(inputs_, outputs_, places_);
    stage_inputs();
    context.enqueue();
    unstage_outputs();
    forget_outputs();
}

void TrtBinding::complete() const {
    std::string absent;
    for (std::size_t place = 0; place < inputs_.size(); ++place) {
        if (inputs_[place].buffer == nullptr)
            absent += (absent.empty() ? "" : ", ") + session_.inputs()[place].name;
    }
    for (std::size_t place = 0; place < outputs_.size(); ++place) {
        if (outputs_[place].buffer == nullptr)
            absent += (absent.empty() ? "" : ", ") + session_.outputs()[place].name;
    }
    if (!absent.empty()) {
        throw BackendError("tensorrt cannot run " + session_.engine().name() + " without " + absent +
                           ": bind them");
    }
}

void TrtBinding::bind_aligned(Context& context) {
    find_places(context, false);
    context.bind(inputs_, outputs_, places_);
}

void TrtBinding::forget_outputs() {
    for (const View& view : outputs_) buffer_of(view).forget();
}

void TrtBinding::find_places(Context& context, bool staged) {
    for (std::size_t place = 0; place < inputs_.size(); ++place) {
        places_.inputs[place] = session_.engine().on_host(place)
                                    ? host_place(context, place)
                                    : device_place(session_.inputs()[place], inputs_[place], place, staged);
    }
    for (std::size_t place = 0; place < outputs_.size(); ++place) {
        places_.outputs[place] =
            device_place(session_.outputs()[place], outputs_[place], inputs_.size() + place, staged);
    }
}

void* TrtBinding::device_place(const TensorName& tensor, const View& view, std::size_t place, bool staged) {
    void* address = address_of(view);
    if (aligned(address)) return address;
    if (staged) return session_.staging(place, bytes_of(view));
    throw BackendError(tensor.name + " of " + session_.engine().name() + " begins " +
                       std::to_string(reinterpret_cast<std::uintptr_t>(address) % alignment) +
                       " bytes behind a multiple of " + std::to_string(alignment) +
                       ", where TensorRT takes no tensor: bind a view that begins at one");
}

void* TrtBinding::host_place(Context& context, std::size_t input) {
    const View& view = inputs_[input];
    const Engine& engine = session_.engine();
    const std::size_t bytes = bytes_of(view);
    const unsigned char* values = buffer_of(view).host();
    if (values == nullptr || bytes > most_values) {
        throw BackendError(
            engine.inputs()[input].name + " of " + engine.name() +
            " sizes other tensors and is read on the host, but its values are on the device: bind a "
            "buffer of at most " +
            std::to_string(most_values) + " bytes that `upload` wrote");
    }
    engine.check_values(input, values + view.offset, bytes, context.profile());
    return context.keep_values(input, values + view.offset, bytes);
}

void TrtBinding::stage_inputs() {
    for (std::size_t place = 0; place < inputs_.size(); ++place) {
        if (session_.engine().on_host(place)) continue;
        const std::size_t bytes = bytes_of(inputs_[place]);
        void* address = address_of(inputs_[place]);
        if (bytes != 0 && places_.inputs[place] != address) {
            session_.device().cuda.copy(places_.inputs[place], address, bytes);
        }
    }
}

void TrtBinding::unstage_outputs() {
    for (std::size_t place = 0; place < outputs_.size(); ++place) {
        const std::size_t bytes = bytes_of(outputs_[place]);
        void* address = address_of(outputs_[place]);
        if (bytes != 0 && places_.outputs[place] != address) {
            session_.device().cuda.copy(address, places_.outputs[place], bytes);
        }
    }
}

}  // namespace fopru
