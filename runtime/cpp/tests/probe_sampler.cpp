// The sampler for tests/test_cpp_sampler.py. A line of JSON: the settings, "vocabulary", "prompt", "draws";
// behind it `draws` times float32 logits [vocabulary], raw. Answers with the ids.
#include <string>

#include "decode/sampler.h"
#include "probe_lines.h"

using namespace fopru;
using namespace fopru::probe;

namespace {

Json picked(const Json& line) {
    Sampling sampling;
    sampling.temperature = real(member(line, "temperature"));
    sampling.top_k = whole(member(line, "top_k"));
    sampling.top_p = real(member(line, "top_p"));
    sampling.min_p = real(member(line, "min_p"));
    sampling.repetition_penalty = real(member(line, "repetition_penalty"));
    sampling.seed = std::stoull(text(member(line, "seed")));
    const std::int64_t vocabulary = whole(member(line, "vocabulary"));
    Sampler sampler(sampling, vocabulary, wholes(member(line, "prompt")));
    std::vector<float> logits(static_cast<std::size_t>(vocabulary));
    std::vector<std::int64_t> ids;
    for (std::int64_t draws = whole(member(line, "draws")); draws > 0; --draws) {
        std::cin.read(reinterpret_cast<char*>(logits.data()),
                      static_cast<std::streamsize>(logits.size() * sizeof(float)));
        if (!std::cin) throw std::runtime_error("the logits end early");
        ids.push_back(sampler.pick(logits.data()));
    }
    return list_of(ids);
}

}  // namespace

int main() { return answer_lines(picked); }
