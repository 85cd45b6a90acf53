// ask BUNDLE IMAGE PROMPT [RATIO]: an answer about a picture as it is made, and what pruning did.
#include <cstdlib>
#include <exception>
#include <fopru/fopru.hpp>
#include <iostream>

int main(int argc, char** argv) {
    if (argc < 4) {
        std::cerr << "usage: ask BUNDLE IMAGE PROMPT [RATIO]\n";
        return 2;
    }
    try {
        const fopru::Bundle bundle(argv[1]);  // checks the SHA-256 of every file
        fopru::Generator generator(bundle);
        const fopru::Image image = generator.image(argv[2]);

        fopru::Request request(argv[3]);
        request.image(image);
        if (argc > 4) request.ratio(std::atof(argv[4]));  // fraction of visual tokens kept

        const fopru::Result result = generator.generate(
            request, [](std::string_view piece) { std::cout << piece << std::flush; });

        std::cout << "\n";
        std::cerr << result.tokens_before(0) << " -> " << result.tokens_after(0) << " visual tokens, first token in "
                  << 1e3 * result.ttft() << " ms\n";
        if (!result.pruned()) std::cerr << "not pruned: " << result.reason() << "\n";
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 2;
    }
}
