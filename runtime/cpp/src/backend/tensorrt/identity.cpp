#include "backend/tensorrt/identity.h"

#include <array>
#include <fstream>
#include <iterator>
#include <tuple>

namespace fopru {

namespace {

struct Chip {
    const char* word;  // in /proc/device-tree/compatible
    const char* name;
    int sm;
};

constexpr Chip chips[] = {{"tegra194", "xavier", 72}, {"tegra234", "orin", 87}, {"tegra264", "thor", 110}};

struct JetPack {
    std::tuple<int, int, int> first;  // release and revision from which on
    const char* version;
};

// Newest first, as in runtime/tensorrt/identity.py.
constexpr JetPack jetpacks[] = {{{39, 2, 1}, "7.2.1"}, {{39, 0, 0}, "7.2"},   {{38, 4, 0}, "7.1"},
                                {{38, 0, 0}, "7.0"},   {{36, 5, 0}, "6.2.2"}, {{36, 4, 4}, "6.2.1"},
                                {{36, 4, 3}, "6.2"},   {{36, 4, 0}, "6.1"},   {{36, 0, 0}, "6.0"},
                                {{35, 0, 0}, "5.1"}};

constexpr std::size_t most_text = 4096;

// Empty where it cannot be read.
std::string text_at(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string text(most_text, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
    return text;
}

bool is_digit(char own) { return own >= '0' && own <= '9'; }

// Digits at a place, which moves behind them; none where there are none or too many.
std::optional<int> number_at(const std::string& text, std::size_t& at) {
    std::size_t end = at;
    int number = 0;
    while (end < text.size() && is_digit(text[end]) && end - at < 6)
        number = 10 * number + (text[end++] - '0');
    if (end == at) return std::nullopt;
    at = end;
    return number;
}

bool skip(const std::string& text, std::size_t& at, const std::string& word) {
    if (text.compare(at, word.size(), word) != 0) return false;
    at += word.size();
    return true;
}

std::string slug(const std::string& text) {
    std::string words;
    for (char own : text) {
        if (own >= 'A' && own <= 'Z') own = static_cast<char>(own - 'A' + 'a');
        const bool kept = is_digit(own) || (own >= 'a' && own <= 'z');
        if (kept) words += own;
        if (!kept && !words.empty() && words.back() != '-') words += '-';
    }
    while (!words.empty() && words.back() == '-') words.pop_back();
    return words;
}

// The name of a GPU without what all of them have.
std::string short_name(const std::string& name) {
    std::size_t at = name.find_first_not_of(" \t");
    at = at == std::string::npos ? 0 : at;
    skip(name, at, "NVIDIA ");
    skip(name, at, "GeForce ");
    return slug(name.substr(at));
}

const Chip* tegra(const std::string& compatible) {
    const std::string word = "nvidia,tegra";
    for (std::size_t at = compatible.find(word); at != std::string::npos;
         at = compatible.find(word, at + 1)) {
        std::size_t end = at + word.size();
        if (!number_at(compatible, end)) continue;
        const std::string found = compatible.substr(at + 7, end - at - 7);
        for (const Chip& chip : chips) {
            if (found == chip.word) return &chip;
        }
    }
    return nullptr;
}

}  // namespace

std::string EngineIdentity::tag() const {
    const std::string words = slug(gpu) + "-sm" + std::to_string(sm) + "-trt" + tensorrt;
    return jetpack ? words + "-jp" + *jetpack : words;
}

std::string EngineIdentity::text() const {
    const std::string words = gpu + " (SM" + std::to_string(sm) + "), TensorRT " + tensorrt;
    return jetpack ? words + ", JetPack " + *jetpack : words;
}

bool EngineIdentity::operator==(const EngineIdentity& other) const {
    return gpu == other.gpu && sm == other.sm && tensorrt == other.tensorrt && jetpack == other.jetpack;
}

std::optional<std::string> jetpack_of(const std::string& release) {
    // Such a file begins `# R36 (release), REVISION: 4.3, GCID: ...`.
    for (std::size_t start = release.find('R'); start != std::string::npos;
         start = release.find('R', start + 1)) {
        std::size_t at = start + 1;
        const std::optional<int> major = number_at(release, at);
        if (!major || !skip(release, at, " (release), REVISION: ")) continue;
        const std::optional<int> minor = number_at(release, at);
        if (!minor) continue;
        std::optional<int> patch;
        if (skip(release, at, ".")) patch = number_at(release, at);
        const std::tuple<int, int, int> version{*major, *minor, patch.value_or(0)};
        for (const JetPack& own : jetpacks) {
            if (std::get<0>(own.first) == *major && version >= own.first) return own.version;
        }
        return "l4t" + std::to_string(*major) + "." + std::to_string(*minor);
    }
    return std::nullopt;
}

EngineIdentity identity_of(const std::string& gpu, int sm, const std::string& tensorrt,
                           const std::string& root) {
    EngineIdentity identity{short_name(gpu), sm, tensorrt,
                            jetpack_of(text_at(root + "/etc/nv_tegra_release"))};
    if (const Chip* chip = tegra(text_at(root + "/proc/device-tree/compatible"))) {
        identity.gpu = chip->name;
        identity.sm = chip->sm;
    }
    return identity;
}

}  // namespace fopru
