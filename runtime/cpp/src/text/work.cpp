#include "text/work.h"

#include <string>

#include "base/error.h"

namespace fopru {

void Work::refuse() const {
    throw RequestError("the patterns of tokenizer.json did not get through a text of " +
                       std::to_string(bytes_) + " bytes in " + std::to_string(limit_) +
                       " steps: shorten the text, or pass token ids");
}

}  // namespace fopru
