#include "generate/generator.h"

#include <algorithm>
#include <atomic>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/python_text.h"
#include "bundle/contract.h"
#include "generate/answer.h"
#include "generate/session_check.h"

namespace fopru {

namespace {

constexpr const char* tokenizer_name = "tokenizer.json";
constexpr const char* newline_name = "image_newline";

std::unique_ptr<const Tokenizer> load_tokenizer(const Bundle& bundle) {
    const std::string file = bundle.file(tokenizer_name);
    try {
        return make_tokenizer(parse_json(read_file(file, JsonLimits{}.bytes), file));
    } catch (const FileError& error) {
        throw BundleError(file + " cannot be loaded (" + error.what() + "): copy the bundle again");
    }
}

std::unique_ptr<Backend> backend_for(const Bundle& bundle, const GeneratorOptions& options) {
    return make_backend(options.backend,
                        {options.threads, options.engines, bundle.manifest().decoder.cache_dtype});
}

std::vector<PromptTurn> turns_of(const Request& request) {
    std::vector<PromptTurn> turns;
    for (const PastTurn& turn : request.history) turns.push_back({turn.prompt, turn.images, turn.answer});
    turns.push_back({request.prompt, request.images, ""});
    return turns;
}

}  // namespace

// Members are destroyed from the last to the first: what holds memory of the backend before the backend.
struct Generator::State {
    State(std::shared_ptr<const Bundle> opened, const GeneratorOptions& options, std::unique_ptr<Backend> own)
        : bundle(std::move(opened)),
          backend(own ? std::move(own) : backend_for(*bundle, options)),
          tokenizer(load_tokenizer(*bundle)),
          prompter(bundle->manifest(), *tokenizer),
          features(options.reuse_features),
          reuse_prefix(options.reuse_prefix) {}

    Session& session(const std::string& graph);
    VisionEncoder& vision_encoder();
    void note_warning();

    std::shared_ptr<const Bundle> bundle;
    std::unique_ptr<Backend> backend;
    std::unique_ptr<const Tokenizer> tokenizer;
    Prompter prompter;
    std::map<std::string, std::unique_ptr<Session>> sessions;
    std::unique_ptr<VisionEncoder> vision;
    FeatureCache features;
    bool reuse_prefix;
    std::vector<std::string> decoder_graphs;
    std::string run_graph;
    std::unique_ptr<DecoderRun> run;
    std::optional<PromptRows> kept;  // what the rows of `run` were made from; none while it is in use
    std::string warning;
    bool answering = false;  // between `start_run` and `end_run`
    std::atomic<bool> cancelled{false};
};

Session& Generator::State::session(const std::string& graph) {
    const auto open = sessions.find(graph);
    if (open != sessions.end()) return *open->second;
    const auto& graphs = bundle->manifest().graphs;
    const auto info = graphs.find(graph);
    if (info == graphs.end()) {
        throw BundleError("bundle " + bundle->path() + " has no graph " + graph + ": " + rebuild_bundle);
    }
    auto session = backend->open(graph, bundle->graph_file(graph));
    check_session(graph, info->second, *session);
    return *(sessions[graph] = std::move(session));
}

VisionEncoder& Generator::State::vision_encoder() {
    if (!vision) {
        const auto open = [this](const std::string& graph) -> Session& { return session(graph); };
        vision = std::make_unique<VisionEncoder>(*backend, open, bundle->manifest(),
                                                 bundle->constant(newline_name));
    }
    return *vision;
}

void Generator::State::note_warning() {
    if (run == nullptr || run->refusal().empty()) return;
    warning = "decoding steps are not recorded as a CUDA graph, and run slower: " + run->refusal();
}

Generator::Generator(std::shared_ptr<const Bundle> bundle, const GeneratorOptions& options)
    : Generator(std::move(bundle), options, nullptr) {}

Generator::Generator(std::shared_ptr<const Bundle> bundle, const GeneratorOptions& options,
                     std::unique_ptr<Backend> backend)
    : state_(std::make_unique<State>(std::move(bundle), options, std::move(backend))) {}

Generator::~Generator() = default;

const Bundle& Generator::bundle() const { return *state_->bundle; }
const Manifest& Generator::manifest() const { return state_->bundle->manifest(); }
Backend& Generator::backend() { return *state_->backend; }
const Tokenizer& Generator::tokenizer() const { return *state_->tokenizer; }
FeatureCache& Generator::features() { return state_->features; }
Session& Generator::session(const std::string& graph) { return state_->session(graph); }

Result Generator::generate(const Request& request, const Pictures& pictures, const OnText& on_text) {
    state_->cancelled = false;
    AnswerRun answer(*this, request, pictures);
    try {
        return answer.answer(on_text, [this] { return state_->cancelled.load(); });
    } catch (...) {
        if (state_->answering) drop_run();  // in the middle: nobody knows what its rows are
        throw;
    }
}

void Generator::cancel() noexcept { state_->cancelled = true; }

std::vector<SharedTokens> Generator::encode_all(const Request& request, const Pictures& pictures) {
    AnswerRun answer(*this, request, pictures);
    answer.plan();
    answer.encode();
    return answer.tokens();
}

void Generator::warmup(const Request& request, const Pictures& pictures) {
    AnswerRun answer(*this, request, pictures);
    answer.plan();
    answer.tokenize();
    answer.encode();
    const Prompt made = answer.prompt();
    const Rows embeds = answer.embed(made);
    DecoderRun& run = decoder_run(decoder_graphs().front());
    try {
        run.prepare(answer.capacity(), made.positions);
        run.prefill(embeds);
        run.warm();
        state_->note_warning();
    } catch (...) {
        drop_run();
        throw;
    }
    if (!state_->reuse_prefix) drop_run();  // as after an answer
    state_->features.clear();
}

const std::string& Generator::warning() const { return state_->warning; }

PreparedImage Generator::preprocess(const Image& image) const {
    return prepare(image, *manifest().layout, manifest().preprocess);
}

std::vector<EncodedImage> Generator::encode(const std::vector<const PreparedImage*>& images,
                                            const Selection& selection) {
    return state_->vision_encoder().encode(images, selection);
}

std::vector<EncodedImage> Generator::encode_unpruned(const std::vector<const PreparedImage*>& images) {
    return state_->vision_encoder().encode_unpruned(images);
}

std::string Generator::vision_graph(const Selection& selection) const {
    return state_->vision_encoder().graph_for(selection);
}

std::vector<std::int64_t> Generator::tokenize(const Request& request,
                                              const std::vector<const ImagePlan*>& plans) const {
    return state_->prompter.ids(turns_of(request), plans);
}

Prompt Generator::prompt(const std::vector<std::int64_t>& plain,
                         const std::vector<const EncodedImage*>& images) const {
    std::vector<std::int64_t> runs;
    std::vector<PlacedImage> placed;
    for (const EncodedImage* image : images) {
        runs.insert(runs.end(), image->assembly.runs.begin(), image->assembly.runs.end());
        placed.push_back({&image->plan, &image->assembly});
    }
    const Manifest& own = manifest();
    return {expand_images(plain, own.tokens.image, runs),
            prompt_positions(plain, own.tokens.image, placed, own.pruning.position_ids,
                             own.decoder.position_axes)};
}

Rows Generator::embed(const std::vector<std::int64_t>& ids, const std::vector<const Rows*>& features) {
    const std::int64_t image = manifest().tokens.image, width = manifest().decoder.hidden_size;
    const auto length = static_cast<std::int64_t>(ids.size());
    const std::int64_t places = std::count(ids.begin(), ids.end(), image);
    std::int64_t rows = 0;
    for (const Rows* part : features) rows += part->count;
    if (places != rows) {
        throw RequestError("the prompt has " + std::to_string(places) + " image placeholders for " +
                           std::to_string(rows) +
                           " visual tokens: make the ids with prompt(tokenize(request, plans), images)");
    }
    // Some checkpoints have no embedding for the placeholder; its value is overwritten, so any id will do.
    std::vector<std::int64_t> plain = ids;
    std::replace(plain.begin(), plain.end(), image, std::int64_t{0});
    Backend& backend = *state_->backend;
    Session& session = state_->session(contract::embed_tokens);
    const auto row_bytes = static_cast<std::size_t>(width) * sizeof(float);
    const auto taken = backend.allocate(plain.size() * sizeof(std::int64_t));
    Rows made{backend.allocate(plain.size() * row_bytes), length, width, 0};
    const View input{taken.get(), Dtype::int64, {1, length}, 0};
    const auto binding = session.bind();
    backend.upload(input, plain.data());
    const std::string graph = std::string("graph ") + contract::embed_tokens;
    binding->set_input(required_place(session.input(contract::input_ids), graph, contract::input_ids), input);
    binding->set_output(
        required_place(session.output(contract::inputs_embeds), graph, contract::inputs_embeds),
        {made.buffer.get(), Dtype::float32, {1, length, width}, 0});
    binding->run();
    // One copy for each run of neighbouring placeholders.
    std::size_t place = 0;
    for (const Rows* part : features) {
        for (std::int64_t done = 0; done < part->count;) {
            while (ids[place] != image) ++place;
            const std::size_t first = place;
            std::int64_t run = 0;
            while (place < ids.size() && ids[place] == image && done + run < part->count) ++place, ++run;
            const auto from = part->offset + static_cast<std::size_t>(done) * row_bytes;
            backend.copy({made.buffer.get(), Dtype::float32, {run, width}, first * row_bytes},
                         {part->buffer.get(), Dtype::float32, {run, width}, from});
            done += run;
        }
    }
    backend.wait();  // `taken` goes away
    return made;
}

DecoderRun& Generator::decoder_run(const std::string& graph) {
    const DecoderInfo& info = manifest().decoder;
    state_->kept.reset();
    if (!state_->run || state_->run_graph != graph) {
        drop_run();
        const auto cache = std::find_if(info.caches.begin(), info.caches.end(),
                                        [&](const auto& own) { return own.first == graph; });
        if (cache == info.caches.end()) {
            throw RequestError("the bundle has no decoder graph " + graph + ": use one of decoder_graphs");
        }
        const DecoderGraphs graphs{&session(contract::embed_tokens), &session(graph), cache->second};
        state_->run = std::make_unique<DecoderRun>(*state_->backend, graphs, info);
        state_->run_graph = graph;
    }
    return *state_->run;
}

const std::vector<std::string>& Generator::decoder_graphs() const {
    std::vector<std::string>& graphs = state_->decoder_graphs;
    if (!graphs.empty()) return graphs;
    const auto& caches = manifest().decoder.caches;
    const auto& kinds = state_->backend->cache_kinds();
    std::vector<std::string> offered;
    for (const auto& [graph, kind] : caches) offered.push_back(kind);
    for (const std::string& kind : kinds) {
        for (const auto& [graph, found] : caches) {
            if (found == kind) graphs.push_back(graph);
        }
    }
    if (!graphs.empty()) return graphs;
    throw BackendError(std::string("backend ") + state_->backend->name() +
                       " runs decoders with a cache of kind " + joined(kinds, " or ") + ", but those of " +
                       bundle().path() + " are of kind " + joined(offered) +
                       ": build the bundle again, or use another backend");
}

Start Generator::start_run(std::int64_t capacity, const Prompt& prompt,
                           const std::vector<SharedTokens>& images) {
    const auto length = static_cast<std::int64_t>(prompt.ids.size());
    Start start;
    if (state_->reuse_prefix)
        start.rows = prompt_rows(prompt.ids, prompt.positions, images, manifest().tokens.image);
    // The last row of the prompt is always run: its logits are wanted, and no cache has them.
    if (state_->kept) {
        start.reused = std::min(state_->kept->common(start.rows), length - 1);
        start.reused -= start.reused % state_->run->row_step();
    }
    const std::string& graph = decoder_graphs().front();
    if (state_->run) {
        // A cache of twice the size would outlive the request that needed it, to save a short prefill.
        const bool wasteful = state_->run->oversized(capacity) && 2 * start.reused < length;
        const bool small = state_->run->capacity() < capacity && start.reused == 0;
        if (wasteful || small || state_->run_graph != graph) {
            drop_run();  // before the next one is made
            start.reused = 0;
        }
    }
    start.run = &decoder_run(graph);
    state_->answering = true;
    start.run->prepare(capacity, prompt.positions, start.reused);
    return start;
}

void Generator::end_run(Start start, const std::vector<std::int64_t>& fed) {
    state_->answering = false;
    state_->note_warning();
    if (!state_->reuse_prefix) return drop_run();
    start.rows.follow(fed);
    state_->kept = std::move(start.rows);
}

void Generator::drop_run() noexcept {
    state_->answering = false;
    state_->kept.reset();
    state_->run.reset();
}

void Generator::forget() {
    state_->features.clear();
    drop_run();
}

void Generator::release(const std::string& graph) {
    const auto& graphs = state_->bundle->manifest().graphs;
    if (graphs.count(graph) == 0) {
        std::string names;
        for (const auto& [name, info] : graphs) names += (names.empty() ? "" : ", ") + name;
        throw RequestError("the bundle has no graph \"" + graph + "\": release one of " + names);
    }
    if (graph == contract::vision_encoder || graph == contract::vision_encoder_fopru) {
        state_->vision.reset();
    } else {
        drop_run();  // which holds the session
    }
    state_->sessions.erase(graph);
}

}  // namespace fopru
