#include "generate/answer.h"

#include <numeric>

#include "base/error.h"
#include "bundle/contract.h"

namespace fopru {

namespace {

std::int64_t sum(const std::vector<std::int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

std::int64_t sum(const Counts& counts) {
    std::int64_t total = 0;
    for (const auto& own : counts) total += sum(own);
    return total;
}

std::string listed(const Counts& counts, std::size_t first) {
    std::string text;
    for (std::size_t i = 0; i < first; ++i) text += (i == 0 ? "" : ", ") + std::to_string(sum(counts[i]));
    return text;
}

// The rows after the first `done`.
Rows behind(Rows rows, std::int64_t done) {
    rows.offset += static_cast<std::size_t>(done * rows.width) * sizeof(float);
    rows.count -= done;
    return rows;
}

std::string images_of(std::size_t count) { return std::to_string(count) + " images"; }

}  // namespace

AnswerRun::AnswerRun(Generator& generator, const Request& request, const Pictures& pictures)
    : generator_(generator),
      manifest_(generator.manifest()),
      request_(request),
      pictures_(pictures),
      tokens_(pictures.encoded),
      reused_images_(static_cast<std::int64_t>(pictures.encoded.size())) {
    request.check();
    const std::size_t given = pictures.encoded.size(), images = request.all_images();
    if (given > images) {
        throw RequestError("got visual tokens of " + images_of(given) + " for a request with " +
                           std::to_string(images) +
                           ": they belong to the first images of history and turn, in order");
    }
    if (given + pictures.prepared.size() != images) {
        throw RequestError("got " + images_of(given + pictures.prepared.size()) + " for a request with " +
                           std::to_string(images) + ": give those of all turns, in order");
    }
    timings_.preprocess = pictures.seconds;
}

void AnswerRun::plan() {
    for (const SharedTokens& tokens : tokens_) plans_.push_back(&tokens->image.plan);
    for (const PreparedImage* image : pictures_.prepared) plans_.push_back(&image->plan);
    pruning_ = plan_pruning({request_.ratio, request_.tokens}, request_.selector, manifest_, plans_);
    if (!tokens_.empty()) join_given(tokens_.size());
}

// What is encoded already decides its own counts.
void AnswerRun::join_given(std::size_t given) {
    Counts joined;
    bool same = true;
    for (std::size_t i = 0; i < given; ++i) {
        joined.emplace_back();
        for (const auto& kept : tokens_[i]->image.kept)
            joined.back().push_back(static_cast<std::int64_t>(kept.size()));
        same = same && sum(joined[i]) == sum(pruning_.counts[i]);
    }
    if ((request_.ratio || request_.tokens) && !same) {
        throw RequestError(
            "got " + listed(joined, given) + " visual tokens of the images, but the request asks for " +
            listed(pruning_.counts, given) + ": encode the images again, or leave ratio and tokens out");
    }
    joined.insert(joined.end(), pruning_.counts.begin() + given, pruning_.counts.end());
    std::int64_t everything = 0;
    for (const ImagePlan* plan : plans_) everything += plan->prunable();
    pruning_.counts = std::move(joined);
    pruning_.pruned = sum(pruning_.counts) < everything;
    if (pruning_.pruned) {
        pruning_.reason.reset();
    } else if (!pruning_.reason) {
        pruning_.reason = "the visual tokens given are not pruned";
    }
}

void AnswerRun::tokenize() {
    const StageTimer timer(timings_.embed);
    plain_ = generator_.tokenize(request_, plans_);
    check_length();
}

// Sets the tokens of the pruned prompt (the most, where images decide); refused if they are too many.
void AnswerRun::check_length() {
    const PruningInfo& rules = manifest_.pruning;
    auto prompt = static_cast<std::int64_t>(plain_.size());
    bool prunable = false;
    for (std::size_t i = 0; i < plans_.size(); ++i) {
        const std::int64_t kept = sum(pruning_.counts[i]);
        prompt += kept_placeholders(*plans_[i], kept, manifest_.layout->prefix_tokens(),
                                    newline_policy(*plans_[i], kept, rules)) -
                  static_cast<std::int64_t>(plans_[i]->runs.size());
        for (const std::int64_t count : pruning_.counts[i]) prunable = prunable || count > 1;
    }
    prompt_tokens_ = prompt;
    const bool original = rules.position_ids == "original";
    const std::int64_t end = original ? unpruned_end(plain_, plans_) : prompt;
    const std::int64_t limit = manifest_.decoder.max_positions, wanted = request_.max_new_tokens;
    if (end <= limit && wanted <= limit - end) return;
    std::string what = "has " + std::to_string(end) + " tokens";
    std::string way_out = prunable ? "lower the ratio or max_new_tokens" : "lower max_new_tokens";
    if (original && !plans_.empty()) {
        what = "reaches position " + std::to_string(end) + ",";
        way_out = "use fewer or smaller images (pruning keeps positions), or lower max_new_tokens";
    }
    if (plans_.empty()) way_out = "shorten the prompt or lower max_new_tokens";
    throw RequestError("the prompt " + what + " and the answer up to " + std::to_string(wanted) +
                       ", but the model has " + std::to_string(limit) + " positions: " + way_out);
}

void AnswerRun::encode() {
    if (pictures_.prepared.empty()) return;
    const std::size_t given = tokens_.size();
    // As if all images were encoded now: each unit has a seed of its own.
    std::uint64_t seed = request_.sampling.seed;
    for (const SharedTokens& tokens : tokens_) seed += tokens->image.kept.size();
    Selection selection{{pruning_.counts.begin() + given, pruning_.counts.end()}, request_.selector, seed};
    // Images may be pruned although the given ones are not, and the other way round.
    bool pruned = false;
    for (std::size_t i = 0; i < pictures_.prepared.size(); ++i) {
        pruned = pruned || sum(selection.counts[i]) < pictures_.prepared[i]->plan.prunable();
    }
    const std::optional<Selection> chosen =
        pruned ? std::optional<Selection>(std::move(selection)) : std::nullopt;
    std::vector<std::string> keys;
    {
        const StageTimer timer(timings_.preprocess);
        keys = generator_.features().keys(pictures_.prepared, chosen);
    }
    const auto found = generator_.features().encode(
        pictures_.prepared, chosen, keys,
        [this](const auto& images, const auto& part) { return run_encoder(images, part); });
    reused_images_ += found.reused;
    tokens_.insert(tokens_.end(), found.tokens.begin(), found.tokens.end());
}

// Encodes images of which no visual tokens are kept; no selection: unpruned.
std::vector<SharedTokens> AnswerRun::run_encoder(const FeatureCache::Images& images,
                                                 const std::optional<Selection>& selection) {
    const std::string graph = selection ? generator_.vision_graph(*selection) : contract::vision_encoder;
    {
        const StageTimer timer(timings_.load);
        generator_.session(graph);
    }
    const StageTimer timer(timings_.vision);
    auto encoded = selection ? generator_.encode(images, *selection) : generator_.encode_unpruned(images);
    std::vector<SharedTokens> tokens;
    for (std::size_t i = 0; i < images.size(); ++i) {
        std::string digest = tokens_digest(*images[i], graph, encoded[i]);
        tokens.push_back(
            std::make_shared<VisualTokens>(VisualTokens{std::move(encoded[i]), std::move(digest)}));
    }
    return tokens;
}

Prompt AnswerRun::prompt() {
    const StageTimer timer(timings_.embed);
    std::vector<const EncodedImage*> images;
    for (const SharedTokens& tokens : tokens_) images.push_back(&tokens->image);
    Prompt made = generator_.prompt(plain_, images);
    prompt_tokens_ = static_cast<std::int64_t>(made.ids.size());
    return made;
}

Rows AnswerRun::embed(const Prompt& prompt) {
    const StageTimer timer(timings_.embed);
    std::vector<const Rows*> features;
    for (const SharedTokens& tokens : tokens_) features.push_back(&tokens->image.features);
    return generator_.embed(prompt.ids, features);
}

std::int64_t AnswerRun::capacity() const { return prompt_tokens_ + request_.max_new_tokens - 1; }

Result AnswerRun::answer(const OnText& on_text, const Cancelled& cancelled) {
    plan();
    tokenize();
    if (!cancelled()) encode();
    if (tokens_.size() == plans_.size() && !cancelled()) decode(on_text, cancelled);
    return result();
}

void AnswerRun::decode(const OnText& on_text, const Cancelled& cancelled) {
    {
        const StageTimer timer(timings_.load);
        generator_.session(contract::embed_tokens);
        generator_.session(generator_.decoder_graphs().front());
    }
    const Prompt made = prompt();
    Rows embeds = embed(made);
    const Vocabulary vocabulary{manifest_.decoder.vocab_size, manifest_.tokens.eos, generator_.tokenizer()};
    loop_ = std::make_unique<TokenLoop>(request_, vocabulary, made.ids);
    Start start;
    std::string piece;
    {
        const StageTimer timer(timings_.prefill);
        start = generator_.start_run(capacity(), made, tokens_);
        reused_tokens_ = start.reused;
        kv_allocated_ = start.run->allocated_bytes();
        piece = loop_->push(start.run->prefill(behind(embeds, start.reused)));
    }
    embeds = {};       // memory that the answer needs no more
    bool told = true;  // the caller wants to hear more
    while (true) {
        if (!piece.empty() && on_text && told) told = on_text(piece);
        if (loop_->finished()) break;
        if (!told || cancelled()) {
            piece = loop_->cancel();
            continue;
        }
        const StageTimer timer(timings_.decode);
        piece = loop_->push(start.run->step(loop_->token_ids().back()));
    }
    std::vector<std::int64_t> fed(loop_->token_ids().begin(), loop_->token_ids().end() - 1);
    generator_.end_run(std::move(start), fed);
}

Result AnswerRun::result() const {
    Result result;
    if (loop_) {
        result.text = loop_->text();
        result.token_ids = loop_->token_ids();
    }
    result.finish_reason = loop_ && loop_->finished() ? loop_->finish_reason() : "cancelled";
    result.prompt_tokens = prompt_tokens_;
    count_visual_tokens(result);
    result.pruned = pruning_.pruned;
    result.reason = pruning_.reason;
    result.timings = timings_;
    const std::int64_t rows = capacity();
    const std::int64_t unpruned = rows + sum(result.visual_tokens_before) - sum(result.visual_tokens_after);
    result.kv_bytes = cache_bytes(manifest_.decoder, rows);
    result.kv_bytes_unpruned = cache_bytes(manifest_.decoder, unpruned);
    result.kv_bytes_allocated = kv_allocated_;
    result.peak_rss_bytes = peak_rss_bytes();
    result.reused_tokens = reused_tokens_;
    result.reused_images = reused_images_;
    return result;
}

void AnswerRun::count_visual_tokens(Result& result) const {
    const bool encoded = tokens_.size() == plans_.size();
    for (std::size_t i = 0; i < plans_.size(); ++i) {
        const std::int64_t kept = sum(pruning_.counts[i]);
        const auto prefix =
            manifest_.layout->prefix_tokens() * static_cast<std::int64_t>(plans_[i]->units.size());
        result.visual_tokens_before.push_back(plans_[i]->placeholders() - prefix);
        // What went on, where the count depends on the image.
        result.visual_tokens_after.push_back(
            encoded ? tokens_[i]->image.features.count - prefix
                    : kept_placeholders(*plans_[i], kept, 0,
                                        newline_policy(*plans_[i], kept, manifest_.pruning)));
    }
    for (const SharedTokens& tokens : tokens_) result.kept_indices.push_back(tokens->image.kept_indices());
}

}  // namespace fopru
