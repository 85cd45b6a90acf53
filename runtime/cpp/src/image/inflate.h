// Private to src/image: zlib, owned.
#pragma once

#include <zlib.h>

#include <string>

#include "image/decode.h"

namespace fopru {

// A zlib stream that is being unpacked. Owns zlib's state; neither copied nor moved, because zlib points back
// to it.
class Inflate {
public:
    Inflate();
    ~Inflate() { inflateEnd(&stream_); }
    Inflate(const Inflate&) = delete;
    Inflate& operator=(const Inflate&) = delete;

    // Bytes to unpack, which must stay until they are used up.
    void feed(Bytes input);
    bool hungry() const { return stream_.avail_in == 0; }
    // Unpacks into `out` and says how many bytes came; sets `ended` at the end of the stream. False where it
    // is damaged.
    bool unpack(std::uint8_t* out, std::size_t room, std::size_t& written, bool& ended);

private:
    z_stream stream_{};
};

// The text of a compressed chunk, at most `limit` bytes, else Damaged. What is no zlib stream gives nothing,
// as in Pillow.
std::string inflate_text(Bytes packed, std::size_t limit);

}  // namespace fopru
