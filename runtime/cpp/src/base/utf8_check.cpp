#include "base/utf8_check.h"

namespace fopru {

std::size_t first_bad_utf8(std::string_view bytes) {
    auto byte = [&](std::size_t at) { return static_cast<unsigned char>(bytes[at]); };
    for (std::size_t at = 0; at < bytes.size();) {
        unsigned lead = byte(at);
        std::size_t more = lead < 0x80   ? 0
                           : lead < 0xc2 ? 4
                           : lead < 0xe0 ? 1
                           : lead < 0xf0 ? 2
                           : lead < 0xf5 ? 3
                                         : 4;
        if (more == 4 || more > bytes.size() - at - 1) return at;
        // What the second byte may be excludes overlong forms, surrogates and numbers that are too large.
        unsigned least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        unsigned most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        for (std::size_t next = at + 1; next <= at + more; ++next, least = 0x80, most = 0xbf) {
            if (byte(next) < least || byte(next) > most) return at;
        }
        at += more + 1;
    }
    return std::string_view::npos;
}

}  // namespace fopru
