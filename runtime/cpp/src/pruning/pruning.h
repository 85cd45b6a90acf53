// How many visual tokens stay, where they go in the prompt, and at which positions: runtime/counts.py,
// plan.py, assemble.py, positions.py, prompt.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "layout/layout.h"
#include "text/tokenizer.h"

namespace fopru {

// clamp(floor(tokens * ratio + 0.5), 1, tokens), in double precision. RequestError: tokens < 1, ratio not in
// (0, 1].
std::int64_t kept_count(std::int64_t tokens, double ratio);

// A ratio, or so many tokens, or (neither) everything.
struct Amount {
    std::optional<double> ratio;
    std::optional<std::int64_t> tokens;
    bool everything() const { return !ratio && !tokens; }
    std::string text() const;  // "ratio 0.3", as Python's str writes the number
};

using Counts = std::vector<std::vector<std::int64_t>>;  // by image and unit

// Where rows of the stitched picture are compared, the counts of its tiles depend on the picture; then an
// image's counts are the overview's and the sum of all tiles'.
struct PruningPlan {
    Counts counts;
    bool pruned = false;
    std::optional<std::string> reason;  // why not
};

// Kept tokens of each unit of an image: a ratio holds for each of them, a budget for all together; whole rows
// where `rows`. RequestError: a budget outside what the image has, rows without a grid.
std::vector<std::int64_t> unit_counts(const ImagePlan& plan, const Amount& amount, bool rows);
// Where rows of the stitched picture are compared: (the overview's, all tiles' together), see `PruningPlan`.
std::vector<std::int64_t> stitched_counts(const ImagePlan& plan, const Amount& amount);

// `asked` is the request's amount; `selector` is "graph", "none" or one of `host_selectors`.
PruningPlan plan_pruning(const Amount& asked, const std::string& selector, const Manifest& manifest,
                         const std::vector<const ImagePlan*>& plans);
// As runtime/selectors.py allows, without "graph" and "none".
const std::vector<std::string>& host_selectors();
void check_selector(const std::string& selector);  // RequestError: none of these, nor "graph" or "none"
bool needs_scores(const std::string& selector);
bool stitched_rows(const std::string& selector, const PruningInfo& pruning);
// Of the valid tokens of all tiles together. RequestError: a plan without mosaic or overview.
Grid stitched_grid(const ImagePlan& plan);
std::string newline_policy(const ImagePlan& plan, std::int64_t kept, const PruningInfo& pruning);
std::int64_t kept_placeholders(const ImagePlan& plan, std::int64_t kept, std::int64_t prefix,
                               const std::string& newline);

// Host selectors on the valid tokens of a unit: places among them, ascending. The scores must outlive the
// call; a selector that does not look at them may get zeros. "none" is taken too.
struct Choice {
    const float* scores = nullptr;  // [tokens]
    std::int64_t tokens = 0;
    std::optional<Grid> grid;
    std::int64_t keep = 0;
    std::uint64_t seed = 0;
};
// RequestError: unknown, K out of range, no grid or no whole rows; BackendError: a score is not finite.
std::vector<std::int64_t> select_tokens(const std::string& selector, const Choice& choice);
// Rows kept of the tiles of a stitched picture: by unit, ascending, the overview's left empty.
std::vector<std::vector<std::int64_t>> stitched_rows_kept(const ImagePlan& plan,
                                                          const std::vector<std::vector<float>>& scores,
                                                          std::int64_t keep);

// Which placeholders stay. `source` counts rows through all units as the encoder gave them (prefix and kept
// rows of each, in order); -1 is the newline.
struct Assembly {
    std::vector<std::int64_t> places;  // of the plan's placeholders, ascending
    std::vector<std::int64_t> source;  // one per place
    std::vector<std::int64_t> runs;    // placeholders left of each run
};
// RequestError: a kept place that its unit does not have.
Assembly assemble(const ImagePlan& plan, const std::vector<std::vector<std::int64_t>>& kept,
                  int prefix_tokens, const std::string& newline);

struct PlacedImage {
    const ImagePlan* plan;
    const Assembly* assembly;
};

// The t-th image id becomes runs[t] ids. RequestError: another number of image ids.
std::vector<std::int64_t> expand_images(const std::vector<std::int64_t>& ids, std::int64_t image,
                                        const std::vector<std::int64_t>& runs);

struct Positions {
    int axes = 1;
    std::vector<std::int64_t> ids;  // [axes, L]
    std::int64_t next = 0;          // of the first generated token
    std::int64_t length() const { return static_cast<std::int64_t>(ids.size()) / axes; }
};
// `plain` has one image id per run; `policy` is "renumber" or "original". RequestError: another number of
// image ids.
Positions prompt_positions(const std::vector<std::int64_t>& plain, std::int64_t image,
                           const std::vector<PlacedImage>& images, const std::string& policy, int axes);
// Where the answer of the unpruned prompt would begin.
std::int64_t unpruned_end(const std::vector<std::int64_t>& plain, const std::vector<const ImagePlan*>& plans);

// Text of a chat. Safe for several threads once made.
struct PromptTurn {
    std::string prompt;
    std::size_t images = 0;
    std::string answer;
};
class Prompter {
public:
    // BundleError: the tokenizer lacks the image token, or the template does not hold it once.
    Prompter(const Manifest& manifest, const Tokenizer& tokenizer);
    // RequestError: a text holds the image token, or a second turn where the model has no chat form.
    std::string render(const std::vector<PromptTurn>& turns,
                       const std::vector<const ImagePlan*>& plans) const;
    std::vector<std::int64_t> ids(const std::vector<PromptTurn>& turns,
                                  const std::vector<const ImagePlan*>& plans) const;

private:
    const PromptTemplate& template_;
    const Tokenizer& tokenizer_;
    std::string image_text_;
};

}  // namespace fopru
