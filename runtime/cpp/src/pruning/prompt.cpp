#include "base/error.h"
#include "base/python_text.h"
#include "base/words.h"
#include "pruning/pruning.h"

namespace fopru {

namespace {

constexpr const char* prompt_slot = "{prompt}";
constexpr const char* images_slot = "{images}";
constexpr std::size_t max_text = std::size_t{1} << 26;  // bytes; Python has no such limit but its memory

// Tiles are many and an image token may be long, so the product is known before the text is made.
void check_length(std::size_t before, const std::string& image_text, const ImagePlan& plan) {
    const std::size_t bytes = before + plan.text.size();
    if (bytes <= max_text && image_text.size() * plan.runs.size() <= max_text - bytes) return;
    throw RequestError("the images would have more than " + std::to_string(max_text) +
                       " bytes of text in the prompt: give fewer, or smaller ones");
}

// What the prompt contains is never taken for a slot.
std::string filled_turn(const std::string& turn, const std::string& images, const std::string& prompt) {
    const auto at = turn.find(prompt_slot);
    const std::string after = turn.substr(at + std::string(prompt_slot).size());
    return replaced(turn.substr(0, at), images_slot, images) + prompt + replaced(after, images_slot, images);
}

// `text` without its last `count` characters.
void drop_characters(std::string& text, std::size_t count) {
    const std::size_t all = characters(text);
    text = first_characters(text, all > count ? all - count : 0);
}

const std::string& turn_template(const PromptTemplate& form, bool first, bool images) {
    const auto& plain = first ? form.first_text : form.next_text;
    if (!images && plain) return *plain;
    return first ? form.first_turn : *form.next_turn;
}

}  // namespace

Prompter::Prompter(const Manifest& manifest, const Tokenizer& tokenizer)
    : template_(manifest.prompt), tokenizer_(tokenizer) {
    const std::string rebuild = std::string(": ") + rebuild_bundle;
    const auto text = tokenizer.token_text(manifest.tokens.image);
    if (!text || text->empty()) {
        throw BundleError("tokens.image is " + std::to_string(manifest.tokens.image) +
                          ", which tokenizer.json does not have" + rebuild);
    }
    image_text_ = *text;
    if (count_of(template_.image, image_text_) != 1) {
        throw BundleError("prompt.image is " + python_repr(template_.image) + ", expected " +
                          python_repr(image_text_) + " in it once" + rebuild);
    }
}

std::string Prompter::render(const std::vector<PromptTurn>& turns,
                             const std::vector<const ImagePlan*>& plans) const {
    if (turns.size() > 1 && !template_.next_turn) {
        throw RequestError("this model's template has no second turn: ask without history");
    }
    std::size_t images = 0;
    for (const auto& turn : turns) {
        for (const auto* part : {&turn.prompt, &turn.answer}) {
            if (part->find(image_text_) == std::string::npos) continue;
            throw RequestError("the prompt contains the image token " + python_repr(image_text_) +
                               ": leave it out, the template adds one for every image");
        }
        images += turn.images;
    }
    if (images > plans.size()) {
        throw RequestError("the turns have " + std::to_string(images) + " images, but " +
                           std::to_string(plans.size()) + " were given: give one for each");
    }
    std::string text;
    auto plan = plans.begin();
    for (std::size_t number = 0; number < turns.size(); ++number) {
        const PromptTurn& turn = turns[number];
        std::string shown;
        for (std::size_t i = 0; i < turn.images; ++i, ++plan) {
            check_length(text.size() + shown.size(), image_text_, **plan);
            shown += replaced(template_.image, image_text_, replaced((*plan)->text, image_slot, image_text_));
        }
        text += filled_turn(turn_template(template_, number == 0, turn.images > 0), shown, turn.prompt);
        if (number + 1 == turns.size()) break;
        drop_characters(text, characters(template_.generation));
        text += replaced(template_.past_answer, "{answer}", turn.answer);
    }
    return text;
}

std::vector<std::int64_t> Prompter::ids(const std::vector<PromptTurn>& turns,
                                        const std::vector<const ImagePlan*>& plans) const {
    return tokenizer_.encode(render(turns, plans), template_.add_special_tokens);
}

}  // namespace fopru
