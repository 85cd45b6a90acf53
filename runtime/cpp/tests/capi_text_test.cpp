// A file of its own: the wrapper's names are those of the library.
#include <doctest/doctest.h>

#include "capi/handles.h"
#include "fopru/fopru.hpp"

TEST_CASE("an answer with a zero in it is whole") {
    auto made = std::make_unique<fopru_result>();
    made->result.text = std::string("a\0b", 3);
    CHECK(fopru_result_text_length(made.get()) == 3);
    const fopru::api::Result result(made.release());
    CHECK(result.text() == std::string("a\0b", 3));
}
