#include "image/inflate.h"

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

namespace fopru {

Inflate::Inflate() {
    if (inflateInit(&stream_) != Z_OK) {
        throw std::bad_alloc();
    }
}

void Inflate::feed(Bytes input) {
    if (input.size > std::numeric_limits<uInt>::max()) {
        throw Damaged("a chunk is too long");
    }
    stream_.next_in = const_cast<Bytef*>(input.data);  // zlib reads only, its type is older than const
    stream_.avail_in = static_cast<uInt>(input.size);
}

bool Inflate::unpack(std::uint8_t* out, std::size_t room, std::size_t& written, bool& ended) {
    const auto asked = static_cast<uInt>(std::min<std::size_t>(room, std::numeric_limits<uInt>::max()));
    stream_.next_out = out;
    stream_.avail_out = asked;
    const int status = inflate(&stream_, Z_NO_FLUSH);
    written = asked - stream_.avail_out;
    ended = status == Z_STREAM_END;
    return status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR;
}

std::string inflate_text(Bytes packed, std::size_t limit) {
    Inflate stream;
    stream.feed(packed);
    std::string text;
    std::vector<std::uint8_t> block(std::size_t{1} << 14);
    bool ended = false;
    while (!ended) {
        std::size_t written = 0;
        if (!stream.unpack(block.data(), block.size(), written, ended)) {
            return {};
        }
        if (written > limit - text.size()) {
            throw Damaged("a text chunk unpacks to more than " + std::to_string(limit) + " bytes");
        }
        text.append(block.begin(), block.begin() + static_cast<std::ptrdiff_t>(written));
        if (written == 0 && !ended) {
            break;  // the input ends before the stream does
        }
    }
    return text;
}

}  // namespace fopru
