// A backend in the host's memory whose graphs are functions of the test.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"

namespace fopru::fake {

class FakeBuffer : public Buffer {
public:
    explicit FakeBuffer(std::size_t bytes) : bytes_(bytes == 0 ? 1 : bytes), size_(bytes) {}
    void* data() override { return bytes_.data(); }
    std::size_t bytes() const override { return size_; }

private:
    std::vector<char> bytes_;  // an address, even for nothing
    std::size_t size_;
};

inline void check_fits(const View& view) {
    const std::size_t bytes = static_cast<std::size_t>(view.shape.elements()) * item_bytes(view.dtype);
    if (view.buffer == nullptr || view.offset + bytes > view.buffer->bytes())
        throw BackendError("past the end");
}

template <class Number>
Number* numbers(const View& view) {
    check_fits(view);
    return reinterpret_cast<Number*>(static_cast<char*>(view.buffer->data()) + view.offset);
}

class FakeBinding;
using Compute = std::function<void(FakeBinding&)>;

class FakeSession : public Session {
public:
    FakeSession(std::vector<TensorName> inputs, std::vector<TensorName> outputs, Compute compute)
        : inputs_(std::move(inputs)), outputs_(std::move(outputs)), compute_(std::move(compute)) {}
    const std::vector<TensorName>& inputs() const override { return inputs_; }
    const std::vector<TensorName>& outputs() const override { return outputs_; }
    std::unique_ptr<Binding> bind() override;
    std::int64_t greatest(int index, int axis) const override {
        return limit < 0 ? Session::greatest(index, axis) : limit;
    }

    std::int64_t limit = -1;              // of every dim; -1: none
    std::function<void()> before, after;  // of a run
    int runs = 0;
    int bindings = 0;  // made

private:
    friend class FakeBinding;
    std::vector<TensorName> inputs_, outputs_;
    Compute compute_;
};

class FakeBinding : public Binding {
public:
    explicit FakeBinding(FakeSession& session)
        : session_(session), inputs(session.inputs_.size()), outputs(session.outputs_.size()) {}
    void set_input(int index, const View& view) override {
        check_fits(view);
        inputs.at(static_cast<std::size_t>(index)) = view;
    }
    void set_output(int index, const View& view) override {
        check_fits(view);
        outputs.at(static_cast<std::size_t>(index)) = view;
    }
    void run() override {
        ++session_.runs;
        if (session_.before) session_.before();
        session_.compute_(*this);
        if (session_.after) session_.after();
    }
    const View& in(const std::string& name) const {
        return inputs.at(static_cast<std::size_t>(session_.input(name)));
    }
    const View& out(const std::string& name) const {
        return outputs.at(static_cast<std::size_t>(session_.output(name)));
    }

private:
    FakeSession& session_;

public:
    std::vector<View> inputs, outputs;
};

inline std::unique_ptr<Binding> FakeSession::bind() {
    ++bindings;
    return std::make_unique<FakeBinding>(*this);
}

class FakeBackend : public Backend {
public:
    explicit FakeBackend(bool device = false) : device_(device) {}
    const char* name() const override { return "fake"; }
    std::string description() const override { return "fake"; }
    const std::vector<std::string>& cache_kinds() const override { return kinds_; }
    bool on_device() const override { return device_; }
    std::unique_ptr<Session> open(const std::string& graph, const std::string&) override {
        throw BackendError("no " + graph);
    }
    std::unique_ptr<Buffer> allocate(std::size_t bytes) override {
        if (bytes > most_bytes) throw BackendError("no memory");
        ++allocations;
        return std::make_unique<FakeBuffer>(bytes);
    }
    void upload(const View& target, const void* source) override {
        if (size(target) > 0) std::memcpy(numbers<char>(target), source, size(target));
    }
    void download(void* target, const View& source) override {
        if (size(source) > 0) std::memcpy(target, numbers<char>(source), size(source));
    }
    void copy(const View& target, const View& source) override {
        ++copies;
        if (size(target) != size(source)) throw BackendError("other sizes");
        std::memmove(numbers<char>(target), numbers<char>(source), size(source));
    }

    std::size_t most_bytes = std::size_t{1} << 30;
    int allocations = 0, copies = 0;

private:
    static std::size_t size(const View& view) {
        return static_cast<std::size_t>(view.shape.elements()) * item_bytes(view.dtype);
    }
    bool device_;
    std::vector<std::string> kinds_ = {"shared", "append", "concat"};
};

}  // namespace fopru::fake
