#include <algorithm>
#include <map>

#include "bundle/contract.h"
#include "check/check.h"
#include "check/costs.h"
#include "check/golden.h"

namespace fopru {
namespace {

std::vector<const PreparedImage*> pointers(const std::vector<PreparedImage>& images) {
    std::vector<const PreparedImage*> found;
    for (const PreparedImage& image : images) found.push_back(&image);
    return found;
}

// The request as a caller would give it. A default is all that a small image has; asked for, it would be
// refused.
Request request_of(const CheckRequest& asked, const PruningInfo& pruning) {
    const bool is_default =
        asked.amount.ratio == pruning.default_ratio && asked.amount.tokens == pruning.default_tokens;
    Request request;
    request.prompt = asked.prompt;
    request.images = asked.images.size();
    if (!is_default) {
        request.ratio = asked.amount.everything() ? std::optional<double>(1.0) : asked.amount.ratio;
        request.tokens = asked.amount.tokens;
    }
    request.max_new_tokens = asked.new_tokens;
    request.ignore_eos = true;
    request.check();
    return request;
}

// float32 rows, from wherever they are.
void append_rows(Backend& backend, const Rows& rows, std::vector<float>& values) {
    if (rows.count == 0) return;
    View view;
    view.buffer = rows.buffer.get();
    view.shape = Shape{rows.count, rows.width};
    view.offset = rows.offset;
    const std::size_t start = values.size();
    values.resize(start + static_cast<std::size_t>(view.shape.elements()));
    backend.download(values.data() + start, view);
}

Tensor feature_tensor(Backend& backend, const std::vector<EncodedImage>& images) {
    std::vector<float> values;
    std::int64_t rows = 0, width = 0;
    for (const EncodedImage& image : images) {
        append_rows(backend, image.features, values);
        rows += image.features.count;
        width = image.features.width;
    }
    return float_tensor({rows, width}, std::move(values));
}

Tensor pixel_tensor(const std::vector<PreparedImage>& images) {
    std::vector<float> values;
    std::int64_t width = 1;
    for (const PreparedImage& image : images) {
        values.insert(values.end(), image.pixels.values.begin(), image.pixels.values.end());
        if (!image.pixels.shape.empty()) width = std::max<std::int64_t>(image.pixels.shape.back(), 1);
    }
    const auto rows = static_cast<std::int64_t>(values.size()) / width;
    return float_tensor({rows, width}, std::move(values));
}

void add_choice(const std::vector<EncodedImage>& images, Tensors& tensors) {
    std::vector<std::int64_t> counts, kept;
    std::vector<float> scores;
    bool scored = false;
    for (const EncodedImage& image : images) {
        for (const auto& own : image.kept) {
            counts.push_back(static_cast<std::int64_t>(own.size()));
            kept.insert(kept.end(), own.begin(), own.end());
        }
        if (!image.scores) continue;
        scored = true;
        for (const auto& own : *image.scores) scores.insert(scores.end(), own.begin(), own.end());
    }
    const auto flat = [](std::size_t size) {
        return std::vector<std::int64_t>{static_cast<std::int64_t>(size)};
    };
    tensors.set("kept_counts", integer_tensor(flat(counts.size()), counts));
    if (scored) tensors.set("token_scores", float_tensor(flat(scores.size()), scores));
    tensors.set("kept_indices", integer_tensor(flat(kept.size()), kept));
}

std::optional<UnitScores> unit_scores(const std::vector<PreparedImage>& images, const PruningInfo& pruning) {
    if (pruning.row_scope == "stitched") return std::nullopt;
    UnitScores found;
    std::vector<std::int64_t> columns;
    // With padding at its sides a row has fewer tokens than the grid's columns, and its near-ties are not
    // looked for.
    bool full = true;
    for (const PreparedImage& image : images) {
        for (const Unit& unit : image.plan.units) {
            found.tokens.push_back(unit.tokens);
            columns.push_back(unit.grid ? unit.grid->second : 0);
            full = full && unit.grid && !unit.valid;
        }
    }
    if (pruning.strategy != "row") return found;
    if (!full) return std::nullopt;
    found.columns = columns;
    return found;
}

Tensor logit_tensor(const float* logits, std::int64_t vocabulary) {
    return float_tensor({1, vocabulary}, std::vector<float>(logits, logits + vocabulary));
}

Tensor token_tensor(std::vector<std::int64_t> tokens) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    return integer_tensor({1, count}, std::move(tokens));
}

// The prompt behind every graph of the decoder.
struct Prefilled {
    const Prompt& prompt;
    const Rows& embeds;
    std::int64_t new_tokens;
};

void add_further_decoder(Generator& generator, const std::string& graph, const Prefilled& from,
                         Tensors& tensors) {
    const std::int64_t vocabulary = generator.manifest().decoder.vocab_size;
    DecoderRun& run = generator.decoder_run(graph);
    run.prepare(from.prompt.positions.length() + from.new_tokens - 1, from.prompt.positions);
    const float* logits = run.prefill(from.embeds);
    tensors.set("logits" + (of_graph + graph), logit_tensor(logits, vocabulary));
    std::vector<std::int64_t> tokens;
    while (true) {
        tokens.push_back(std::max_element(logits, logits + vocabulary) - logits);
        if (static_cast<std::int64_t>(tokens.size()) >= from.new_tokens) break;
        logits = run.step(tokens.back());
    }
    tensors.set("tokens" + (of_graph + graph), token_tensor(std::move(tokens)));
}

// Visual tokens as `Generator::generate` takes them: nothing is kept, so nothing asks for a digest.
Pictures pictures_of(const std::vector<EncodedImage>& images) {
    Pictures pictures;
    for (const EncodedImage& image : images) {
        pictures.encoded.push_back(std::make_shared<const VisualTokens>(VisualTokens{image, ""}));
    }
    return pictures;
}

}  // namespace

Measured measure(Generator& generator, const CheckRequest& asked) {
    const Manifest& manifest = generator.manifest();
    const Request request = request_of(asked, manifest.pruning);
    const auto images = pointers(asked.images);
    std::vector<const ImagePlan*> plans;
    for (const PreparedImage& image : asked.images) plans.push_back(&image.plan);
    Selection selection;
    selection.counts =
        plan_pruning({request.ratio, request.tokens}, request.selector, manifest, plans).counts;

    Measured measured;
    Tensors& tensors = measured.tensors;
    tensors.set("pixel_values", pixel_tensor(asked.images));
    tensors.set("image_features", feature_tensor(generator.backend(), generator.encode_unpruned(images)));
    // Two encoders and a decoder at once would set the peak memory.
    generator.release(contract::vision_encoder);
    const std::vector<EncodedImage> encoded = generator.encode(images, selection);
    add_choice(encoded, tensors);
    tensors.set("pruned_features", feature_tensor(generator.backend(), encoded));

    std::vector<const EncodedImage*> parts;
    std::vector<const Rows*> features;
    for (const EncodedImage& image : encoded) {
        parts.push_back(&image);
        features.push_back(&image.features);
    }
    const Prompt prompt = generator.prompt(generator.tokenize(request, plans), parts);
    const std::int64_t length = prompt.positions.length();
    tensors.set("input_ids", integer_tensor({1, static_cast<std::int64_t>(prompt.ids.size())}, prompt.ids));
    tensors.set("position_ids", integer_tensor({prompt.positions.axes, length}, prompt.positions.ids));
    const Rows embeds = generator.embed(prompt.ids, features);
    std::vector<float> rows;
    append_rows(generator.backend(), embeds, rows);
    tensors.set("inputs_embeds", float_tensor({1, embeds.count, embeds.width}, std::move(rows)));

    const std::vector<std::string> graphs = generator.decoder_graphs();
    DecoderRun& run = generator.decoder_run(graphs.front());
    run.prepare(length, prompt.positions);
    tensors.set("logits", logit_tensor(run.prefill(embeds), manifest.decoder.vocab_size));
    tensors.set("tokens", token_tensor(generator.generate(request, pictures_of(encoded)).token_ids));
    for (std::size_t at = 1; at < graphs.size(); ++at) {
        generator.release(graphs[at - 1]);  // one set of weights at a time
        add_further_decoder(generator, graphs[at], {prompt, embeds, request.max_new_tokens}, tensors);
    }
    measured.units = unit_scores(asked.images, manifest.pruning);
    return measured;
}

ParityReport check_bundle(const std::shared_ptr<const Bundle>& bundle, GeneratorOptions options) {
    const Golden golden = load_record(*bundle);
    const Tensors reference = load_golden(*bundle);
    options.reuse_features = 0;
    options.reuse_prefix = false;
    Generator generator(bundle, options);
    CheckRequest request;
    request.prompt = golden.prompt;
    for (const std::string& name : golden.images) {
        request.images.push_back(generator.preprocess(read_image(bundle->file(name))));
    }
    request.amount = {golden.ratio, golden.tokens};
    request.new_tokens = golden.new_tokens;
    const Measured measured = measure(generator, request);
    std::map<std::string, std::string> precisions;
    for (const auto& [name, graph] : bundle->manifest().graphs) precisions[name] = graph.precision;
    return judged(compare(reference, measured.tensors, measured.units), precisions,
                  bundle->manifest().parity);
}

}  // namespace fopru
