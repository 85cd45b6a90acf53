// A pattern of tokenizer.json, and where it matches.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/work.h"

namespace fopru {

// Bytes [begin, end) of a text; `match` false for what is between matches.
struct Span {
    std::size_t begin, end;
    bool match;
};
using Spans = std::vector<Span>;

// Immutable, so any number of threads may share one. Patterns come from outside: the memory of a search is
// limited, and so are the steps of all searches of a call, see work.h.
class Pattern {
public:
    // A pattern in the syntax of Oniguruma (Ruby's), in the subset that means the same to PCRE2 once it is
    // translated. BundleError names what is not in it; `path` is for the message.
    static Pattern from_regex(const std::string& regex, const std::string& path);
    // Characters as they are.
    static Pattern from_text(const std::string& text);
    // Runs of letters and digits, and of what is neither these nor white space.
    static Pattern words_and_symbols();
    // "pattern" of a Split or Replace: {"String": text} or {"Regex": regex}.
    static Pattern from_json(const class Fields& owner);

    Pattern(Pattern&&) noexcept;
    Pattern& operator=(Pattern&&) noexcept;
    ~Pattern();

    // Matches from left to right and what is between them, in order, covering the text, which must be UTF-8.
    // Empty text gives one empty span without a match. RequestError where there is not enough `work` left.
    Spans spans(std::string_view text, Work& work) const;
    // The text with every match replaced. RequestError as above, and see growth.h.
    std::string replaced(std::string_view text, std::string_view content, Work& work) const;

private:
    struct Code;
    explicit Pattern(std::unique_ptr<const Code> code);
    std::unique_ptr<const Code> code_;
};

struct PcrePattern {
    std::string text;
    std::size_t longest_run = 1;  // the greatest n of {n}, {n,} and {n,m}
};

// Oniguruma's syntax as PCRE2's. BundleError as above. With `additions`, classes hold what Unicode has got
// after version 14 too.
PcrePattern pcre_from_oniguruma(std::string_view regex, const std::string& path, bool additions);

// \w+|[^\w\s]+ in the meaning of Rust's regex.
std::string pcre_of_words_and_symbols(bool additions);

}  // namespace fopru
