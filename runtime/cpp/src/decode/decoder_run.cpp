#include "decode/decoder_run.h"

#include <algorithm>

#include "base/error.h"
#include "bundle/contract.h"
#include "decode/kv_cache.h"
#include "decode/padded_step.h"

namespace fopru {

namespace {

constexpr std::size_t id_bytes = sizeof(std::int64_t);

// Places of the tensors that every decoder has.
struct Places {
    int embeds, mask, positions, count, logits;
};

Places places_of(const Session& decoder) {
    const char* graph = "the decoder";
    return {required_place(decoder.input(contract::inputs_embeds), graph, contract::inputs_embeds),
            required_place(decoder.input(contract::attention_mask), graph, contract::attention_mask),
            required_place(decoder.input(contract::position_ids), graph, contract::position_ids),
            required_place(decoder.input(contract::num_logits_to_keep), graph, contract::num_logits_to_keep),
            required_place(decoder.output(contract::logits), graph, contract::logits)};
}

Shape position_shape(int axes, std::int64_t rows) {
    return axes == 1 ? Shape{1, rows} : Shape{axes, 1, rows};
}

std::string number(std::int64_t value) { return std::to_string(value); }

}  // namespace

struct DecoderRun::State {
    State(Backend& given, const DecoderGraphs& opened, const DecoderInfo& about)
        : backend(given), graphs(opened), info(about), places(places_of(*opened.decoder)) {
        token = view(backend.allocate(id_bytes), Dtype::int64, {1, 1});
        count = view(backend.allocate(id_bytes), Dtype::int64, {});
        embedding = view(floats(info.hidden_size), Dtype::float32, {1, 1, info.hidden_size});
        logits = view(floats(info.vocab_size), Dtype::float32, {1, 1, info.vocab_size});
        const std::int64_t one = 1;
        backend.upload(count, &one);
        if (backend.on_device()) on_host.resize(static_cast<std::size_t>(info.vocab_size));
        embed = graphs.embed->bind();
        embed->set_input(required_place(graphs.embed->input(contract::input_ids), contract::embed_tokens,
                                        contract::input_ids),
                         token);
        embed->set_output(required_place(graphs.embed->output(contract::inputs_embeds),
                                         contract::embed_tokens, contract::inputs_embeds),
                          embedding);
    }

    // Now, not in the middle of an answer: an engine takes a past of so many rows.
    void check(std::int64_t capacity, const Positions& positions, std::int64_t keep) const {
        const std::int64_t rows = positions.length();
        const std::int64_t limit = longest_past(*graphs.decoder);
        if (capacity - 1 > limit) {
            throw RequestError("a prompt of " + number(rows) + " rows and its answer need " +
                               number(capacity - 1) + " rows of KV cache, but the engine takes " +
                               number(limit) +
                               ": lower the ratio or max_new_tokens, or build engines for more with "
                               "`python -m runtime.engine`");
        }
        const std::int64_t held = cache == nullptr ? 0 : cache->length();
        if (keep < 0 || keep > std::min(held, rows - 1)) {
            throw RequestError("cannot keep " + number(keep) + " rows of a cache of " + number(held) +
                               " for a prompt of " + number(rows) +
                               ": keep at most all cached rows, and fewer than the prompt has");
        }
        if (positions.axes != info.position_axes) {
            throw RequestError("the positions have " + number(positions.axes) +
                               " axes, but the decoder takes " + number(info.position_axes) +
                               ": make them with Generator.prompt");
        }
    }

    // A cache of at least that capacity, with the first rows of the last answer.
    void make_room(std::int64_t capacity, std::int64_t keep) {
        // A cache of twice the size would outlive the request that needed it.
        const bool wasteful = keep == 0 && cache != nullptr && cache->oversized(capacity);
        const bool fits = cache != nullptr && !wasteful && (keep > 0 || cache->capacity() >= capacity);
        if (fits && cache->capacity() >= capacity) {
            cache->cut(keep);
            return;
        }
        padded.reset();  // both hold addresses of the buffers that make way
        decoder.reset();
        if (!fits) {
            cache.reset();
            cache = KvCache::make(backend, *graphs.decoder, info, graphs.cache, capacity);
            return;
        }
        std::unique_ptr<KvCache> growing = std::move(cache);  // gone, if memory ends in the middle
        growing->cut(keep);
        growing->grow(capacity);
        cache = std::move(growing);
    }

    // The decoder with what never changes.
    void bind() {
        auto* stacked = dynamic_cast<StackedCache*>(cache.get());
        if (padded == nullptr && stacked != nullptr) {
            const StepTensors tensors{token, embedding, logits, count, info.position_axes};
            padded = std::make_unique<PaddedStep>(backend, graphs, *stacked, tensors);
        }
        if (decoder != nullptr) return;
        decoder = graphs.decoder->bind();
        decoder->set_input(places.count, count);
        decoder->set_output(places.logits, logits);
        if (cache->fixed()) cache->bind(*decoder, 0);
    }

    void take_positions(std::int64_t capacity, const Positions& positions, std::int64_t keep) {
        const std::int64_t rows = positions.length(), steps = std::max<std::int64_t>(0, capacity - rows);
        // Each chunk of a prompt is a tensor of its own, all axes of it together.
        std::vector<std::int64_t> chunks, later;
        chunks.reserve(positions.ids.size());
        for (std::int64_t start = keep; start < rows; start += prefill_rows) {
            const std::int64_t end = std::min(rows, start + prefill_rows);
            for (int axis = 0; axis < positions.axes; ++axis) {
                const auto first = positions.ids.begin() + axis * rows;
                chunks.insert(chunks.end(), first + start, first + end);
            }
        }
        later.reserve(static_cast<std::size_t>(steps * positions.axes));
        for (std::int64_t step = 0; step < steps; ++step) {  // a step has the same on every axis
            later.insert(later.end(), static_cast<std::size_t>(positions.axes), positions.next + step);
        }
        keep_numbers(prompt_positions, chunks);
        keep_numbers(later_positions, later);
        if (mask_rows < cache->capacity()) {
            keep_numbers(mask, std::vector<std::int64_t>(static_cast<std::size_t>(cache->capacity()), 1));
            mask_rows = cache->capacity();
        }
        prompt_length = rows;
        next = positions.next;
        kept = keep;
        room = capacity;
    }

    void run(const View& embeds, const View& positions) {
        const std::int64_t rows = embeds.shape.dims[1], total = cache->length() + rows;
        cache->check_room(rows);
        decoder->set_input(places.embeds, embeds);
        decoder->set_input(places.mask, {mask.get(), Dtype::int64, {1, total}, 0});
        decoder->set_input(places.positions, positions);
        if (!cache->fixed()) cache->bind(*decoder, rows);
        decoder->run();
        cache->advance(rows);
    }

    const float* result() {
        if (!backend.on_device()) return static_cast<const float*>(logits.buffer->data());
        backend.download(on_host.data(), logits);
        return on_host.data();
    }

    View view(std::unique_ptr<Buffer> buffer, Dtype dtype, const Shape& shape) {
        small.push_back(std::move(buffer));
        return {small.back().get(), dtype, shape, 0};
    }
    std::unique_ptr<Buffer> floats(int count_of) {
        return backend.allocate(static_cast<std::size_t>(count_of) * sizeof(float));
    }
    // Numbers where the backend has them, in the same buffer as those before where they fit.
    void keep_numbers(std::unique_ptr<Buffer>& buffer, const std::vector<std::int64_t>& numbers) {
        const std::size_t bytes = numbers.size() * id_bytes;
        if (buffer == nullptr || buffer->bytes() < bytes) {
            decoder.reset();  // it may hold the address of the buffer that makes way
            buffer.reset();
            buffer = backend.allocate(bytes);
        }
        const View whole{buffer.get(), Dtype::int64, {static_cast<std::int64_t>(numbers.size())}, 0};
        backend.upload(whole, numbers.data());
    }

    Backend& backend;
    const DecoderGraphs graphs;
    const DecoderInfo info;
    const Places places;
    std::vector<std::unique_ptr<Buffer>> small;
    View token, count, embedding, logits;
    std::vector<float> on_host;
    std::unique_ptr<Buffer> prompt_positions, later_positions, mask;
    std::int64_t mask_rows = 0;
    // Of the last `prepare`; -1: none.
    std::int64_t prompt_length = -1, next = 0, kept = 0, room = 0;
    std::unique_ptr<KvCache> cache;
    std::unique_ptr<Binding> embed, decoder;  // behind what they hold the addresses of
    std::unique_ptr<PaddedStep> padded;       // where the backend records steps
};

DecoderRun::DecoderRun(Backend& backend, const DecoderGraphs& graphs, const DecoderInfo& info)
    : state_(std::make_unique<State>(backend, graphs, info)) {}

DecoderRun::~DecoderRun() = default;

void DecoderRun::prepare(std::int64_t capacity, const Positions& positions, std::int64_t keep) {
    State& state = *state_;
    state.check(capacity, positions, keep);
    state.prompt_length = -1;  // until all is made
    state.make_room(capacity, keep);
    state.take_positions(capacity, positions, keep);
    state.bind();
}

const float* DecoderRun::prefill(const Rows& embeds) {
    State& state = *state_;
    const std::int64_t first = length(), prompt = std::max<std::int64_t>(0, state.prompt_length);
    if (first + embeds.count != prompt || first != state.kept || embeds.count < 1) {
        throw RequestError("got " + number(embeds.count) + " rows after " + number(first) +
                           ", but the positions were made for a prompt of " + number(prompt) +
                           ": prefill exactly what the cache lacks");
    }
    if (embeds.width != state.info.hidden_size) {
        throw RequestError("the rows have a width of " + number(embeds.width) + ", expected " +
                           number(state.info.hidden_size) + ": make them with Generator.embed");
    }
    const std::size_t row = static_cast<std::size_t>(embeds.width) * sizeof(float);
    for (std::int64_t start = 0; start < embeds.count; start += prefill_rows) {
        const std::int64_t rows = std::min(prefill_rows, embeds.count - start);
        const std::size_t before = static_cast<std::size_t>(start * state.info.position_axes) * id_bytes;
        state.run({embeds.buffer.get(),
                   Dtype::float32,
                   {1, rows, embeds.width},
                   embeds.offset + static_cast<std::size_t>(start) * row},
                  {state.prompt_positions.get(), Dtype::int64, position_shape(state.info.position_axes, rows),
                   before});
    }
    // The binding would keep the address of the embeddings of the whole prompt, which are the caller's.
    state.decoder->set_input(state.places.embeds, state.embedding);
    return state.result();
}

const float* DecoderRun::step(std::int64_t token) {
    State& state = *state_;
    const std::int64_t generated = length() - state.prompt_length;
    if (state.prompt_length < 0 || generated < 0) {
        throw RequestError("the cache has " + number(length()) + " rows of a prompt of " +
                           number(std::max<std::int64_t>(0, state.prompt_length)) + ": prefill first");
    }
    if (length() + 1 > state.room) {
        throw RequestError("the KV cache holds " + number(state.room) + " positions, but " +
                           number(length() + 1) +
                           " are needed: make the cache for the prompt plus max_new_tokens - 1");
    }
    state.backend.upload(state.token, &token);
    if (state.padded != nullptr) {
        state.padded->run(state.next + generated);
        return state.result();
    }
    state.embed->run();
    const std::size_t before = static_cast<std::size_t>(generated * state.info.position_axes) * id_bytes;
    state.run(state.embedding, {state.later_positions.get(), Dtype::int64,
                                position_shape(state.info.position_axes, 1), before});
    return state.result();
}

void DecoderRun::warm() {
    if (state_->padded != nullptr) {
        state_->padded->prepare();
    } else if (length() < state_->room) {
        step(0);
    }
}

const std::string& DecoderRun::refusal() const {
    static const std::string none;
    return state_->padded == nullptr ? none : state_->padded->refusal();
}

std::int64_t DecoderRun::row_step() const { return state_->cache == nullptr ? 1 : state_->cache->row_step(); }

bool DecoderRun::oversized(std::int64_t capacity) const {
    return state_->cache != nullptr && state_->cache->oversized(capacity);
}

std::int64_t DecoderRun::length() const { return state_->cache == nullptr ? 0 : state_->cache->length(); }

std::int64_t DecoderRun::capacity() const { return state_->cache == nullptr ? 0 : state_->cache->capacity(); }

std::uint64_t DecoderRun::allocated_bytes() const {
    return state_->cache == nullptr ? 0 : state_->cache->allocated_bytes();
}

}  // namespace fopru
