#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "pruning/pruning.h"

namespace fopru {

namespace {

// One run of placeholders that stay: `count` of them, from `first` on in the assembly.
struct Run {
    const PlacedImage* image;
    std::size_t first, count;
    std::int64_t span;
};

std::vector<Run> runs_of(const std::vector<PlacedImage>& images) {
    std::vector<Run> runs;
    for (const auto& image : images) {
        std::size_t first = 0;
        for (std::size_t run = 0; run < image.assembly->runs.size(); ++run) {
            const auto count = static_cast<std::size_t>(image.assembly->runs[run]);
            runs.push_back({&image, first, count, image.plan->spans.at(run)});
            first += count;
        }
    }
    return runs;
}

// Position of the t-th placeholder that stays, counted from the beginning of its run.
std::int64_t offset(const Run& run, int axis, std::size_t t) {
    const auto& offsets = run.image->plan->offsets;
    const auto place = static_cast<std::size_t>(run.image->assembly->places[run.first + t]);
    // A plan of one axis counts the same on every axis.
    const std::size_t row = run.image->plan->axes == 1 ? 0 : static_cast<std::size_t>(axis);
    return offsets.at(row * (offsets.size() / static_cast<std::size_t>(run.image->plan->axes)) + place);
}

[[noreturn]] void another_number(std::int64_t ids, std::size_t runs) {
    throw RequestError("the prompt has " + std::to_string(ids) + " image tokens for " + std::to_string(runs) +
                       " parts of images: write the prompt without image tokens, the template adds them");
}

}  // namespace

std::vector<std::int64_t> expand_images(const std::vector<std::int64_t>& ids, std::int64_t image,
                                        const std::vector<std::int64_t>& runs) {
    const auto found = std::count(ids.begin(), ids.end(), image);
    if (static_cast<std::size_t>(found) != runs.size()) another_number(found, runs.size());
    std::vector<std::int64_t> expanded;
    auto run = runs.begin();
    for (const auto id : ids) {
        expanded.insert(expanded.end(),
                        id == image ? static_cast<std::size_t>(std::max<std::int64_t>(*run++, 0)) : 1, id);
    }
    return expanded;
}

Positions prompt_positions(const std::vector<std::int64_t>& plain, std::int64_t image,
                           const std::vector<PlacedImage>& images, const std::string& policy, int axes) {
    const auto runs = runs_of(images);
    const auto found = std::count(plain.begin(), plain.end(), image);
    if (static_cast<std::size_t>(found) != runs.size()) another_number(found, runs.size());
    std::size_t length = plain.size() - runs.size();
    for (const auto& run : runs) length += run.count;
    Positions positions;
    positions.axes = axes;
    positions.ids.resize(static_cast<std::size_t>(axes) * length);
    for (int axis = 0; axis < axes; ++axis) {
        std::int64_t* out = positions.ids.data() + static_cast<std::size_t>(axis) * length;
        if (policy == "renumber") {
            std::iota(out, out + length, std::int64_t{0});
            positions.next = static_cast<std::int64_t>(length);
            continue;
        }
        std::int64_t next = 0;
        auto run = runs.begin();
        for (const auto id : plain) {
            if (id != image) {
                *out++ = next++;
                continue;
            }
            for (std::size_t t = 0; t < run->count; ++t) *out++ = next + offset(*run, axis, t);
            next += run->span;
            ++run;
        }
        positions.next = next;
    }
    return positions;
}

std::int64_t unpruned_end(const std::vector<std::int64_t>& plain,
                          const std::vector<const ImagePlan*>& plans) {
    auto end = static_cast<std::int64_t>(plain.size());
    for (const auto* plan : plans) {
        end += std::accumulate(plan->spans.begin(), plan->spans.end(), std::int64_t{0}) -
               static_cast<std::int64_t>(plan->spans.size());
    }
    return end;
}

}  // namespace fopru
