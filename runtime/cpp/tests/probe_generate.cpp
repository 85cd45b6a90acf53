// The C functions for tests/test_cpp_generate.py: probe_generate BUNDLE [reuse_features reuse_prefix].
#include <cstdlib>

#include "requests.h"

using namespace fopru::probe;

int main(int count, char** arguments) {
    fopru_options options = fopru_options_default();
    options.threads = 1;
    if (count > 2) options.reuse_features = std::strtoull(arguments[2], nullptr, 10);
    if (count > 3) options.reuse_prefix = std::atoi(arguments[3]);
    try {
        const Generator generator = opened(arguments[1], options);
        return answer_lines([&](const fopru::Json& line) { return answered(generator.get(), line); });
    } catch (const Failed&) {
        std::cerr << fopru_last_error() << "\n";
        return 1;
    }
}
