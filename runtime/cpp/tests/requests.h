// The C functions by JSON lines: each asks for one "op" with the fields of a request; images are paths.
#pragma once

#include <memory>

#include "fopru/fopru.h"
#include "probe_lines.h"

namespace fopru::probe {

template <class T>
using Freed = std::unique_ptr<T, void (*)(T*)>;
using Generator = Freed<fopru_generator>;

struct Failed {
    fopru_status status;
};
void check(fopru_status status);  // Failed

Generator opened(const char* bundle, const fopru_options& options);  // Failed
// What an op gave. A failure is answered with its status and message.
Json answered(fopru_generator* generator, const Json& line);

}  // namespace fopru::probe
