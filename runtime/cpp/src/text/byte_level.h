// GPT-2's spelling of bytes: a printable character for each.
#pragma once

#include <cstdint>
#include <string>

#include "text/piece.h"

namespace fopru {

// As UTF-8.
const std::string& character_of_byte(unsigned char byte);
// -1 for a character that stands for no byte.
int byte_of_character(std::uint32_t character);
// Each byte of the text as its character.
void spell_bytes(Piece& piece);

}  // namespace fopru
