// `fopru run`: ask a bundle about images. runtime/__main__.py.
#include <unistd.h>

#include <iostream>

#include "base/error.h"
#include "chat.h"
#include "commands.h"
#include "output.h"

namespace fopru::cli {
namespace {

constexpr const char* epilog =
    "\nratio and tokens say how many visual tokens are KEPT: --ratio 0.3 keeps 30 % of them (196 -> 59), "
    "--tokens 59\n"
    "keeps 59 per image. With neither, the bundle's own default holds. --ratio 1 prunes nothing. The count "
    "that\n"
    "was really kept is always printed.\n";

struct RunOptions {
    std::string bundle;
    std::vector<std::string> images;
    std::optional<std::string> prompt;
    RequestOptions request;
    DeviceOptions device;
    bool json = false, interactive = false, no_verify = false;

    Command command() {
        Command found{
            "run", "Answer a prompt about images with a pruned vision-language bundle.", &bundle, {}, epilog};
        std::vector<Option>& options = found.options;
        options.push_back({"--image", &images, "FILE", "an image; may be given several times"});
        options.push_back({"--prompt", &prompt, "TEXT", "the question (required without --interactive)"});
        request.declare_pruning(options);
        request.declare_length(options);
        request.declare_sampling(options);
        options.push_back({"--json", &json, "", "print one JSON object at the end instead of streaming"});
        options.push_back(
            {"--interactive", &interactive, "", std::string("chat, one question per line; ") + chat_help});
        device.declare(options);
        options.push_back(
            {"--no-verify", &no_verify, "", "skip the SHA-256 of the files, for a quicker start"});
        return found;
    }
};

void print_json(const Bundle& bundle, const Result& result) {
    Json::Object record = {{"bundle", bundle.path()},
                           {"overlay", nullptr}};  // pictures are drawn by Python alone
    const Json answer = to_json(result);
    record.insert(record.end(), answer.object()->begin(), answer.object()->end());
    write_out(Json(std::move(record)).dump(2) + "\n");
}

int ask(const RunOptions& options) {
    if (!options.prompt) throw RequestError("there is no --prompt: give one, or use --interactive");
    Request request = options.request.request;
    request.prompt = *options.prompt;
    request.images = options.images.size();
    request.check();
    const auto bundle = Bundle::open(options.bundle, !options.no_verify);
    Generator generator(bundle, options.device.generator());
    const AnswerGuard guard(generator);
    const Stopwatch watch;
    std::vector<SharedImage> images;
    for (const std::string& path : options.images) images.push_back(read_prepared(generator, path));
    if (guard.interrupted()) {  // what began before the answer does not cancel it
        write_error("\n");
        return code_interrupted;
    }
    std::optional<OutputError> lost;  // the answer ends in order before it is thrown
    const auto on_text = [&](const std::string& piece) {
        try {
            if (!options.json) write_out(piece);
        } catch (const OutputError& error) {
            lost = error;
        }
        return !lost && !guard.interrupted();
    };
    const Result result = generator.generate(request, pictures_of(images, watch.seconds()), on_text);
    if (lost) throw *lost;
    if (guard.interrupted()) {
        write_error("\n");
        return code_interrupted;
    }
    show_warning(generator);
    if (options.json) {
        print_json(*bundle, result);
        return code_done;
    }
    write_out("\n");
    std::string summary = "\n";
    for (const std::string& line : summary_lines(result)) summary += line + "\n";
    write_error(summary);
    return code_done;
}

// Counts of the last answer, and a prompt, for a person who is typing.
void show_prompt(const Chat& chat) {
    constexpr std::size_t label = 16;  // "visual tokens   "
    if (chat.last()) write_error("[" + summary_lines(*chat.last()).front().substr(label) + "]\n");
    write_error("> ");
}

int converse(const RunOptions& options) {
    for (const auto& [given, name] :
         {std::pair(options.json, "--json"), std::pair(options.prompt.has_value(), "--prompt")}) {
        if (given)
            throw RequestError(std::string(name) +
                               " does not go with --interactive: leave one of the two out");
    }
    options.request.request.check();
    const auto bundle = Bundle::open(options.bundle, !options.no_verify);
    Generator generator(bundle, options.device.generator());
    Chat chat(generator, options.request.request);
    for (const std::string& path : options.images) chat.add_image(path);
    const bool typed = ::isatty(STDIN_FILENO) == 1;
    if (typed) write_error(std::string(chat_help) + "\n");
    std::string line;
    while (true) {
        if (typed) show_prompt(chat);
        if (!std::getline(std::cin, line) || !chat.take(line)) break;
    }
    show_warning(generator);
    return chat.failures() > 0 && !typed ? code_error : code_done;
}

}  // namespace

int run_command(const Arguments& arguments) {
    RunOptions options;
    if (const auto help = parse(options.command(), arguments)) {
        write_out(*help);
        return code_done;
    }
    return options.interactive ? converse(options) : ask(options);
}

}  // namespace fopru::cli
