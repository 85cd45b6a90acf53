#include "text/growth.h"

#include <string>

#include "base/error.h"

namespace fopru {

void check_growth(std::size_t bytes) {
    if (bytes <= most_text_bytes) return;
    throw RequestError("tokenizer.json makes " + std::to_string(bytes) + " bytes of a text, at most " +
                       std::to_string(most_text_bytes) +
                       " are tokenized: shorten the text, or pass token ids");
}

std::size_t check_growth(const Pieces& pieces) {
    std::size_t bytes = 0;
    for (const Piece& piece : pieces) bytes += piece.text.size();
    check_growth(bytes);
    return bytes;
}

}  // namespace fopru
