#include "text/byte_level.h"

#include <array>
#include <utility>

#include "text/utf8.h"

namespace fopru {
namespace {

struct Alphabet {
    std::array<std::string, 256> characters;
    std::array<std::int16_t, 0x144> bytes;

    Alphabet() {
        bytes.fill(-1);
        std::uint32_t next = 256;
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
            const std::uint32_t character = printable ? byte : next++;
            append_utf8(characters[byte], character);
            bytes[character] = static_cast<std::int16_t>(byte);
        }
    }
};

// Written once, by whoever comes first, and only read from then on.
const Alphabet& alphabet() {
    static const Alphabet instance;
    return instance;
}

}  // namespace

const std::string& character_of_byte(unsigned char byte) { return alphabet().characters[byte]; }

int byte_of_character(std::uint32_t character) {
    return character < alphabet().bytes.size() ? alphabet().bytes[character] : -1;
}

void spell_bytes(Piece& piece) {
    const Alphabet& letters = alphabet();
    std::string out;
    out.reserve(piece.text.size() * 2);
    std::size_t start_bytes = 0;
    for (std::size_t place = 0; place < piece.text.size(); ++place) {
        out += letters.characters[static_cast<unsigned char>(piece.text[place])];
        if (place < piece.start_bytes) start_bytes = out.size();
    }
    piece.text = std::move(out);
    piece.start_bytes = start_bytes;
}

}  // namespace fopru
