#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <limits>
#include <utility>

#include "base/error.h"
#include "text/fields.h"
#include "text/growth.h"
#include "text/unicode_data.h"
#include "text/utf8.h"

namespace fopru {
namespace {

constexpr std::uint32_t heap_kibibytes = 65'536;
constexpr std::size_t longest_pattern = std::size_t{64} << 10;

struct CodeFree {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataFree {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextFree {
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct CompileContextFree {
    void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

// One search on its way. PCRE2 limits the steps from one place of a text alone, and a step of it may look at
// any number of characters; but it calls back before each item of a pattern.
struct Search {
    Work& work;
    std::size_t weight;  // of a step
    std::size_t place;   // where the last item was tried
};

// Counts the item, and the characters between it and the last one.
int count_step(pcre2_callout_block* block, void* data) {
    Search& search = *static_cast<Search*>(data);
    const std::size_t place = block->current_position;
    const std::size_t distance = place > search.place ? place - search.place : search.place - place;
    search.place = place;
    return search.work.spend((1 + distance) * search.weight) ? 0 : PCRE2_ERROR_CALLOUT;
}

// A class with many characters takes long for each that it is asked about, and a step asks about all of the
// least length of a run, though it may fail at the last.
std::size_t weight_of(const pcre2_code* code, std::size_t longest_run) {
    std::size_t bytes = 0;
    pcre2_pattern_info(code, PCRE2_INFO_SIZE, &bytes);
    return (1 + bytes / 8192) * (1 + longest_run / 4);
}

std::string message_of(int error) {
    PCRE2_UCHAR text[160];
    if (pcre2_get_error_message(error, text, sizeof text) < 0) return "error " + std::to_string(error);
    return reinterpret_cast<const char*>(text);
}

std::unique_ptr<pcre2_code, CodeFree> compile(const std::string& pattern, std::uint32_t options,
                                              const std::string& path) {
    if (pattern.size() > longest_pattern) throw_damaged(path, "is a pattern of over 65536 bytes");
    const std::unique_ptr<pcre2_compile_context, CompileContextFree> context(
        pcre2_compile_context_create(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context.get(), 100);
    int error = 0;
    PCRE2_SIZE place = 0;
    std::unique_ptr<pcre2_code, CodeFree> code(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_AUTO_CALLOUT | options, &error,
                      &place, context.get()));
    if (!code) throw_damaged(path, "is no pattern: " + message_of(error));
    return code;
}

Spans literal_spans(std::string_view text, std::string_view literal) {
    Spans spans;
    std::size_t covered = 0;
    for (std::size_t found; (found = text.find(literal, covered)) != std::string_view::npos;) {
        if (covered != found) spans.push_back({covered, found, false});
        covered = found + literal.size();
        spans.push_back({found, covered, true});
    }
    if (covered != text.size()) spans.push_back({covered, text.size(), false});
    return spans;
}

bool has_addition(std::string_view text) {
    for (std::size_t place = 0; place < text.size();) {
        if (static_cast<unsigned char>(text[place]) < 0xE0) {
            ++place;
            continue;
        }
        const CodePoint point = code_point_at(text, place);
        if (find_addition(point.value) != nullptr) return true;
        place += point.bytes;
    }
    return false;
}

}  // namespace

struct Pattern::Code {
    // Classes with the newest characters take several times longer, and few texts have these.
    std::unique_ptr<pcre2_code, CodeFree> plain, full;
    std::size_t longest_run = 1;
    std::string literal;  // what is looked for where there is no pattern
};

Pattern::Pattern(std::unique_ptr<const Code> code) : code_(std::move(code)) {}
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Pattern Pattern::from_regex(const std::string& regex, const std::string& path) {
    if (regex.size() > longest_pattern) throw_damaged(path, "is a pattern of over 65536 bytes");
    auto code = std::make_unique<Code>();
    // Ruby's ^ is the beginning of any line.
    const PcrePattern plain = pcre_from_oniguruma(regex, path, false);
    code->longest_run = plain.longest_run;
    code->plain = compile(plain.text, PCRE2_MULTILINE, path);
    code->full = compile(pcre_from_oniguruma(regex, path, true).text, PCRE2_MULTILINE, path);
    return Pattern(std::move(code));
}

Pattern Pattern::from_text(const std::string& text) {
    // Nothing is found between any two characters, as by a pattern.
    if (text.empty()) return from_regex("", "a pattern");
    auto code = std::make_unique<Code>();
    code->literal = text;
    return Pattern(std::move(code));
}

Pattern Pattern::words_and_symbols() {
    auto code = std::make_unique<Code>();
    code->plain = compile(pcre_of_words_and_symbols(false), 0, "a pattern");
    code->full = compile(pcre_of_words_and_symbols(true), 0, "a pattern");
    return Pattern(std::move(code));
}

Pattern Pattern::from_json(const Fields& owner) {
    const Fields pattern = owner.object("pattern");
    if (pattern.find("String") != nullptr) return from_text(pattern.text("String"));
    if (pattern.find("Regex") != nullptr) return from_regex(pattern.text("Regex"), pattern.path_of("Regex"));
    throw_damaged(pattern.path(), "has neither String nor Regex");
}

Spans Pattern::spans(std::string_view text, Work& work) const {
    if (text.empty()) return {{0, 0, false}};
    work.pass(1, text.size());
    if (!code_->plain) return literal_spans(text, code_->literal);
    const std::unique_ptr<pcre2_match_data, MatchDataFree> data(pcre2_match_data_create(1, nullptr));
    const std::unique_ptr<pcre2_match_context, MatchContextFree> context(pcre2_match_context_create(nullptr));
    if (!data || !context) throw std::bad_alloc();
    const pcre2_code* const compiled = (has_addition(text) ? code_->full : code_->plain).get();
    Search search{work, weight_of(compiled, code_->longest_run), 0};
    pcre2_set_callout(context.get(), count_step, &search);
    pcre2_set_heap_limit(context.get(), heap_kibibytes);
    pcre2_set_match_limit(context.get(), std::numeric_limits<std::uint32_t>::max());

    Spans spans;
    const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const PCRE2_SIZE* const found = pcre2_get_ovector_pointer(data.get());
    std::size_t place = 0, covered = 0;
    bool matched_before = false;
    while (place <= text.size()) {
        search.place = place;
        const int count =
            pcre2_match(compiled, subject, text.size(), place, PCRE2_NO_UTF_CHECK, data.get(), context.get());
        if (count == PCRE2_ERROR_NOMATCH) break;
        if (count == PCRE2_ERROR_CALLOUT) work.refuse();
        if (count < 0) {
            throw RequestError("a pattern of tokenizer.json did not get through a text of " +
                               std::to_string(text.size()) + " bytes (" + message_of(count) +
                               "): shorten the text, or pass token ids");
        }
        const std::size_t begin = found[0], end = found[1];
        // \K is not let through, so this does not happen; the spans must stay in order whatever the library
        // does.
        if (begin > end || begin < covered)
            throw RequestError("a pattern of tokenizer.json matches backwards: pass token ids");
        if (begin == end && matched_before && begin == covered) {
            // An empty match right after a match: one character on, or the search would stay here.
            do ++place;
            while (place < text.size() && (static_cast<unsigned char>(text[place]) & 0xC0) == 0x80);
            continue;
        }
        if (covered != begin) spans.push_back({covered, begin, false});
        spans.push_back({begin, end, true});
        place = covered = end;
        matched_before = true;
    }
    if (covered != text.size()) spans.push_back({covered, text.size(), false});
    return spans;
}

std::string Pattern::replaced(std::string_view text, std::string_view content, Work& work) const {
    std::string result;
    for (const Span& span : spans(text, work)) {
        result.append(span.match ? content : text.substr(span.begin, span.end - span.begin));
        check_growth(result.size());
    }
    return result;
}

}  // namespace fopru
