#include <cstring>
#include <new>

#include "base/version.h"
#include "capi/handles.h"

namespace fopru {

namespace {

constexpr std::size_t longest_message = 4096;
thread_local char last_error[longest_message] = "";

fopru_status status_of(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::bundle:
            return FOPRU_BUNDLE_ERROR;
        case ErrorKind::image:
            return FOPRU_IMAGE_ERROR;
        case ErrorKind::request:
            return FOPRU_REQUEST_ERROR;
        case ErrorKind::backend:
            return FOPRU_BACKEND_ERROR;
        case ErrorKind::engine:
            return FOPRU_ENGINE_ERROR;
    }
    return FOPRU_INTERNAL_ERROR;
}

}  // namespace

void set_last_error(const char* message) noexcept {
    std::size_t length = std::strlen(message);
    if (length >= longest_message) {
        length = longest_message - 1;
        while (length > 0 && (message[length] & 0xC0) == 0x80) --length;  // not inside a character
    }
    std::memcpy(last_error, message, length);
    last_error[length] = '\0';
}

fopru_status status_of_exception() noexcept {
    try {
        throw;
    } catch (const Error& error) {
        set_last_error(error.what());
        return status_of(error.kind());
    } catch (const std::bad_alloc&) {
        set_last_error("there is not enough memory: use a smaller model, or smaller images");
        return FOPRU_NO_MEMORY;
    } catch (const std::exception& error) {
        set_last_error(error.what());
        return FOPRU_INTERNAL_ERROR;
    } catch (...) {
        set_last_error("something that is no error was thrown: is it from a callback of the caller?");
        return FOPRU_INTERNAL_ERROR;
    }
}

std::string need_text(const char* text, const char* name) {
    if (text == nullptr) throw RequestError(std::string(name) + " is NULL, expected a text");
    return text;
}

void check_size(std::size_t size, std::size_t known, const char* name) {
    if (size >= sizeof(std::size_t) && size <= known) return;
    throw RequestError(std::string("size of ") + name + " is " + std::to_string(size) +
                       ", expected at most " + std::to_string(known) + ": begin with " + name +
                       "_default(), of a header that is not newer than the library");
}

void give(const std::vector<std::int64_t>& values, std::int64_t* out, std::size_t& count) {
    if (out != nullptr && count >= values.size() && !values.empty()) {
        std::memcpy(out, values.data(), values.size() * sizeof(std::int64_t));
    }
    count = values.size();
}

}  // namespace fopru

extern "C" {

int fopru_abi_version(void) { return FOPRU_ABI_VERSION; }
const char* fopru_version(void) { return fopru::library_version(); }
const char* fopru_last_error(void) { return fopru::last_error; }

}  // extern "C"
