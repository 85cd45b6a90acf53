// An engine behind the backend's interface: sessions, and bindings that share its execution contexts.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/tensorrt/context.h"
#include "backend/tensorrt/engine.h"

namespace fopru {

// A context belongs to one profile, and is made when a shape first needs it. Owns the engine, its contexts,
// and a block for every tensor that was bound where TensorRT takes none.
class TrtSession final : public Session {
public:
    TrtSession(std::shared_ptr<Device> device, std::unique_ptr<Engine> engine);
    ~TrtSession() override;  // waits for the stream; what was recorded with it is gone, too

    const std::vector<TensorName>& inputs() const override { return engine_->inputs(); }
    const std::vector<TensorName>& outputs() const override { return engine_->outputs(); }
    std::unique_ptr<Binding> bind() override;
    std::int64_t greatest(int index, int axis) const override;  // of any profile

    Device& device() const { return *device_; }
    const Engine& engine() const { return *engine_; }
    Context& context(const std::vector<View>& inputs);                      // the shared one
    std::unique_ptr<Context> own_context(const std::vector<View>& inputs);  // for a run that is recorded
    // Device memory of this session alone, for one tensor of a run: the stream keeps runs apart.
    void* staging(std::size_t place, std::size_t bytes);

private:
    std::shared_ptr<Device> device_;
    std::unique_ptr<Engine> engine_;
    std::vector<std::unique_ptr<Context>> contexts_;  // by profile, null until a shape needs it
    std::vector<Block> staging_;                      // by place, inputs first
};

// Views for an engine's tensors, whose buffers must outlive it. A view that does not begin at a multiple of
// 256 bytes, where TensorRT takes no tensor, goes through memory of the session: the new rows of a cache,
// say.
class TrtBinding final : public Binding {
public:
    explicit TrtBinding(TrtSession& session);

    void set_input(int index, const View& view) override;
    void set_output(int index, const View& view) override;
    void run() override;

    // For recorded runs; the caller has a `Use` of the device.
    TrtSession& session() const { return session_; }
    const std::vector<View>& inputs() const { return inputs_; }
    const std::vector<View>& outputs() const { return outputs_; }
    void complete() const;                // BackendError: a tensor is not bound
    void bind_aligned(Context& context);  // BackendError: a view begins where TensorRT takes none
    void forget_outputs();                // what the host knows of them is old

private:
    void set(std::vector<View>& views, const std::vector<TensorName>& tensors, int index, const View& view);
    void find_places(Context& context, bool staged);
    void* device_place(const TensorName& tensor, const View& view, std::size_t place, bool staged);
    void* host_place(Context& context, std::size_t input);
    void stage_inputs();
    void unstage_outputs();

    TrtSession& session_;
    std::vector<View> inputs_, outputs_;
    Places places_;
};

}  // namespace fopru
