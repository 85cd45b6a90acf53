#include "vision/encoder_calls.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "bundle/contract.h"
#include "vision/vision.h"

namespace fopru {

namespace {

using Batch = std::vector<const Job*>;

// A call under way: what it reads must live until it is done.
struct Call {
    Batch batch;
    std::int64_t tokens = 0, keep = 0, rows = 0;  // of one unit
    std::vector<std::unique_ptr<Buffer>> inputs;
    std::shared_ptr<Buffer> features, kept, scores;  // the last two may be null
    std::unique_ptr<Binding> binding;
};

std::vector<std::int64_t> unit_shape(const PreparedImage& image) {
    std::vector<std::int64_t> shape = image.pixels.shape;
    if (!shape.empty()) shape.front() = 1;
    return shape;
}

bool together(const Job& one, const Job& other) {
    // Inputs of the plan are those of one image.
    const bool own = !one.prepared->plan.inputs.empty() || !other.prepared->plan.inputs.empty();
    return (!own || one.image == other.image) && one.keep == other.keep &&
           unit_shape(*one.prepared) == unit_shape(*other.prepared);
}

// In the order in which each kind first appears.
std::vector<Batch> batches_of(const std::vector<Job>& jobs) {
    std::vector<Batch> groups, batches;
    for (const Job& job : jobs) {
        const auto own = std::find_if(groups.begin(), groups.end(),
                                      [&](const Batch& group) { return together(*group.front(), job); });
        if (own == groups.end()) {
            groups.push_back({&job});
        } else {
            own->push_back(&job);
        }
    }
    for (const Batch& group : groups) {
        for (std::size_t start = 0; start < group.size(); start += most_units) {
            const std::size_t end = std::min(group.size(), start + most_units);
            batches.emplace_back(group.begin() + static_cast<std::ptrdiff_t>(start),
                                 group.begin() + static_cast<std::ptrdiff_t>(end));
        }
    }
    return batches;
}

// Makes calls of one graph.
class Caller {
public:
    Caller(Backend& backend, Session& session, const Manifest& manifest, const std::string& graph)
        : backend_(backend), session_(session), manifest_(manifest), graph_(graph) {}

    Call start(const Batch& batch) {
        Call call;
        call.batch = batch;
        call.tokens = batch.front()->shape().tokens;
        call.keep = batch.front()->keep.value_or(call.tokens);
        call.rows = manifest_.layout->prefix_tokens() + call.keep;
        call.binding = session_.bind();
        feed(call);
        const std::int64_t units = static_cast<std::int64_t>(batch.size());
        const std::int64_t width = manifest_.decoder.hidden_size;
        call.features = output(call, contract::image_features, Dtype::float32, {units, call.rows, width});
        call.kept = output(call, contract::kept_indices, Dtype::int64, {units, call.keep});
        call.scores = output(call, contract::token_scores, Dtype::float32, {units, call.tokens});
        if (call.features == nullptr) required_place(-1, "graph " + graph_, contract::image_features);
        call.binding->run();
        return call;
    }

    void finish(const Call& call, Outputs& outputs) {
        const std::size_t units = call.batch.size(),
                          width = static_cast<std::size_t>(manifest_.decoder.hidden_size);
        std::vector<std::int64_t> kept(call.kept == nullptr ? 0
                                                            : units * static_cast<std::size_t>(call.keep));
        std::vector<float> scores(call.scores == nullptr ? 0 : units * static_cast<std::size_t>(call.tokens));
        backend_.wait();
        fetch(call.kept, Dtype::int64, kept.data(), kept.size());
        fetch(call.scores, Dtype::float32, scores.data(), scores.size());
        for (std::size_t place = 0; place < units; ++place) {
            UnitOutputs own;
            const std::size_t rows = static_cast<std::size_t>(call.rows);
            own.features = {call.features, call.rows, static_cast<std::int64_t>(width),
                            place * rows * width * sizeof(float)};
            own.kept = part(kept, place, units);
            own.scores = part(scores, place, units);
            check(call, own);
            outputs[{call.batch[place]->image, call.batch[place]->unit}] = std::move(own);
        }
    }

private:
    void feed(Call& call) {
        const Job& first = *call.batch.front();
        const std::int64_t units = static_cast<std::int64_t>(call.batch.size());
        std::vector<std::int64_t> shape = unit_shape(*first.prepared);
        if (shape.empty()) throw ImageError("an image has no pixels: prepare it with the bundle's layout");
        const std::size_t size = static_cast<std::size_t>(Shape(shape).elements());
        shape.front() = units;
        const View pixels = input(call, contract::pixel_values, Dtype::float32, shape);
        for (std::size_t place = 0; place < call.batch.size(); ++place) {
            const Job& job = *call.batch[place];
            const std::vector<float>& all = job.prepared->pixels.values;
            if (size > all.size() || job.unit > (all.size() - size) / std::max<std::size_t>(size, 1)) {
                throw ImageError(
                    "an image has fewer pixels than its plan: prepare it with the bundle's layout");
            }
            const View own{pixels.buffer,
                           Dtype::float32,
                           {static_cast<std::int64_t>(size)},
                           place * size * sizeof(float)};
            backend_.upload(own, all.data() + job.unit * size);
        }
        for (const auto& [name, values] : first.prepared->plan.inputs) {
            numbers(call, name.c_str(), values.shape, values.values);
        }
        if (graph_ != contract::vision_encoder_fopru) return;
        numbers(call, contract::num_keep, {1}, {call.keep});
        if (manifest_.layout->masked()) mask(call);
        if (manifest_.grid_input()) {
            const Grid grid = first.shape().grid.value_or(Grid{0, 0});
            numbers(call, contract::grid, {2}, {grid.first, grid.second});
        }
    }

    void mask(Call& call) {
        std::vector<std::uint8_t> valid(call.batch.size() * static_cast<std::size_t>(call.tokens));
        for (std::size_t place = 0; place < call.batch.size(); ++place) {
            for (const std::int64_t token : call.batch[place]->shape().valid_indices()) {
                valid.at(place * static_cast<std::size_t>(call.tokens) + static_cast<std::size_t>(token)) = 1;
            }
        }
        const std::int64_t units = static_cast<std::int64_t>(call.batch.size());
        backend_.upload(input(call, contract::token_mask, Dtype::boolean, {units, call.tokens}),
                        valid.data());
    }

    void numbers(Call& call, const char* name, const std::vector<std::int64_t>& shape,
                 const std::vector<std::int64_t>& values) {
        const View view = input(call, name, Dtype::int64, shape);
        if (view.shape.elements() != static_cast<std::int64_t>(values.size())) {
            throw ImageError(
                std::string("the input ") + name +
                " of an image has not as many values as its shape says: prepare it with the bundle's "
                "layout");
        }
        backend_.upload(view, values.data());
    }

    View input(Call& call, const char* name, Dtype dtype, const std::vector<std::int64_t>& dims) {
        View view{nullptr, dtype, Shape(dims), 0};
        call.inputs.push_back(backend_.allocate(bytes_of(view)));
        view.buffer = call.inputs.back().get();
        call.binding->set_input(required_place(session_.input(name), "graph " + graph_, name), view);
        return view;
    }

    // Null where the graph does not give it.
    std::shared_ptr<Buffer> output(Call& call, const char* name, Dtype dtype, const Shape& shape) {
        const int place = session_.output(name);
        if (place < 0) return nullptr;
        View view{nullptr, dtype, shape, 0};
        std::shared_ptr<Buffer> buffer = backend_.allocate(bytes_of(view));
        view.buffer = buffer.get();
        call.binding->set_output(place, view);
        return buffer;
    }

    static std::size_t bytes_of(const View& view) {
        return static_cast<std::size_t>(view.shape.elements()) * item_bytes(view.dtype);
    }

    void fetch(const std::shared_ptr<Buffer>& buffer, Dtype dtype, void* target, std::size_t size) {
        if (buffer == nullptr) return;
        backend_.download(target, {buffer.get(), dtype, {static_cast<std::int64_t>(size)}, 0});
    }

    template <class Number>
    static std::vector<Number> part(const std::vector<Number>& all, std::size_t place, std::size_t parts) {
        const std::size_t size = all.size() / parts;
        const auto first = all.begin() + static_cast<std::ptrdiff_t>(place * size);
        return {first, first + static_cast<std::ptrdiff_t>(size)};
    }

    void check(const Call& call, const UnitOutputs& own) const {
        if (!std::all_of(own.scores.begin(), own.scores.end(),
                         [](float score) { return std::isfinite(score); })) {
            throw BackendError(
                "the vision encoder gave a token score that is not finite: check image and bundle");
        }
        std::int64_t last = -1;
        for (const std::int64_t index : own.kept) {
            if (index <= last || index >= call.tokens) {
                throw BackendError("the vision encoder kept token " + std::to_string(index) + " behind " +
                                   std::to_string(last) + ", expected rising numbers in 0.." +
                                   std::to_string(call.tokens - 1) + ": check image and bundle");
            }
            last = index;
        }
    }

    Backend& backend_;
    Session& session_;
    const Manifest& manifest_;
    const std::string& graph_;
};

}  // namespace

Outputs run_jobs(Backend& backend, Session& session, const Manifest& manifest, const std::string& graph,
                 const std::vector<Job>& jobs) {
    Caller caller(backend, session, manifest, graph);
    std::vector<Call> calls;
    for (const Batch& batch : batches_of(jobs)) calls.push_back(caller.start(batch));
    Outputs outputs;
    for (Call& call : calls) {
        caller.finish(call, outputs);
        call.binding.reset();  // before the buffers that it holds the addresses of
        call.inputs.clear();
    }
    return outputs;
}

}  // namespace fopru
