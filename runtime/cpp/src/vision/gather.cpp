#include "vision/gather.h"

#include "base/error.h"

namespace fopru {

namespace {

struct Place {
    std::size_t part;
    std::int64_t row;
};

View rows_view(const Rows& rows, std::int64_t first, std::int64_t count) {
    const std::size_t row = static_cast<std::size_t>(rows.width) * sizeof(float);
    return {rows.buffer.get(),
            Dtype::float32,
            {count, rows.width},
            rows.offset + static_cast<std::size_t>(first) * row};
}

std::vector<Place> places_of(const std::vector<Part>& parts, std::int64_t width) {
    std::vector<Place> places;
    for (std::size_t part = 0; part < parts.size(); ++part) {
        const Rows& rows = parts[part].rows;
        if (rows.width != width) {
            throw BackendError("visual tokens have a width of " + std::to_string(rows.width) + ", expected " +
                               std::to_string(width) + ": check the bundle");
        }
        const std::int64_t taken =
            parts[part].index ? static_cast<std::int64_t>(parts[part].index->size()) : rows.count;
        for (std::int64_t at = 0; at < taken; ++at) {
            const std::int64_t row =
                parts[part].index ? (*parts[part].index)[static_cast<std::size_t>(at)] : at;
            if (row < 0 || row >= rows.count) {
                throw BackendError("visual token " + std::to_string(row) + " is wanted of " +
                                   std::to_string(rows.count) + ": check image and bundle");
            }
            places.push_back({part, row});
        }
    }
    return places;
}

}  // namespace

Rows gather(Backend& backend, const std::vector<Part>& parts, const std::vector<std::int64_t>& source,
            std::int64_t width) {
    const std::vector<Place> places = places_of(parts, width);
    std::vector<Place> wanted;
    wanted.reserve(source.size());
    for (const std::int64_t number : source) {
        const std::int64_t at = number == newline_row ? static_cast<std::int64_t>(places.size()) - 1 : number;
        if (at < 0 || at >= static_cast<std::int64_t>(places.size())) {
            throw BackendError("row " + std::to_string(number) +
                               " of the visual tokens is wanted, but there are " +
                               std::to_string(places.size()) + ": check image and bundle");
        }
        wanted.push_back(places[static_cast<std::size_t>(at)]);
    }
    Rows made;
    made.count = static_cast<std::int64_t>(wanted.size());
    made.width = width;
    made.buffer = backend.allocate(wanted.size() * static_cast<std::size_t>(width) * sizeof(float));
    for (std::size_t first = 0, last = 0; first < wanted.size(); first = last) {
        const Place& begin = wanted[first];
        for (last = first + 1; last < wanted.size(); ++last) {
            const bool next = wanted[last].part == begin.part &&
                              wanted[last].row == begin.row + static_cast<std::int64_t>(last - first);
            if (!next) break;
        }
        const std::int64_t count = static_cast<std::int64_t>(last - first);
        backend.copy(rows_view(made, static_cast<std::int64_t>(first), count),
                     rows_view(parts[begin.part].rows, begin.row, count));
    }
    return made;
}

Rows upload_rows(Backend& backend, const std::vector<float>& numbers, std::int64_t width) {
    Rows made;
    made.width = width;
    made.count = width == 0 ? 0 : static_cast<std::int64_t>(numbers.size()) / width;
    made.buffer = backend.allocate(numbers.size() * sizeof(float));
    const View whole{made.buffer.get(), Dtype::float32, {static_cast<std::int64_t>(numbers.size())}, 0};
    backend.upload(whole, numbers.data());
    return made;
}

}  // namespace fopru
