// Runs recorded as CUDA graphs: one launch instead of many, without TensorRT's work on the host.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/tensorrt/session.h"

namespace fopru {

// Where the tensors of some runs are: equal places, the same run. Of a shape tensor the values count, too.
struct RunKey {
    struct Place {
        const void* engine = nullptr;
        const void* address = nullptr;
        Shape shape;
        std::vector<unsigned char> values;
        bool operator==(const Place& other) const;
    };
    const void* scratch = nullptr;
    std::vector<Place> places;
    bool has(const Engine& engine) const;
    bool operator==(const RunKey& other) const { return scratch == other.scratch && places == other.places; }
};

// A recorded run, with contexts of its own, which must keep their shapes. The sessions must outlive it.
class RecordedRun {
public:
    // Runs once, as TensorRT finishes its preparations for a shape in a first run; then records.
    // BackendError: it cannot run at all. Where it runs, but cannot be recorded, `refusal` says why.
    explicit RecordedRun(const std::vector<TrtBinding*>& bindings);

    const std::string& refusal() const { return refusal_; }
    void enqueue();
    RunKey key;

private:
    std::vector<std::unique_ptr<Context>> contexts_;
    std::unique_ptr<Launch> launch_;
    std::string refusal_;
};

// Runs bindings, in order, as they were bound when it was made: by a recorded run, plainly where they cannot
// be recorded. Recorded runs are kept with the device as long as their sessions, 32 of them: memory that went
// back to the pool and came again has the same address, so a later request finds the runs of an earlier one.
// A run that was recorded with another scratch block is not used. The bindings must outlive it and stay as
// they are.
class Replay final : public Recorded {
public:
    // BackendError: no bindings, of two backends, one lacks a tensor, or they cannot run at all.
    explicit Replay(std::vector<TrtBinding*> bindings);

    void run() override;  // enqueues
    // Why the runs are not recorded and so are slower; empty where they are.
    const std::string& refusal() const override { return refusal_; }

private:
    std::shared_ptr<RecordedRun> find();  // null where it cannot be recorded

    std::vector<TrtBinding*> bindings_;
    std::weak_ptr<RecordedRun> run_;  // of the device
    std::string refusal_;
};

}  // namespace fopru
