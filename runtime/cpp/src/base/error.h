// Deliberate errors of the runtime: one sentence with the value got, the values allowed and the way out.
#pragma once

#include <stdexcept>
#include <string>

namespace fopru {

// What to do about a bundle that contradicts itself.
constexpr const char* rebuild_bundle = "rebuild the bundle with `python -m export.build`";

// The same kinds as the exception tree of `runtime/errors.py`; `fopru_status` has a number for each.
enum class ErrorKind { bundle, image, request, backend, engine };

// Thrown inside the library only: the C functions catch it and turn it into a status and a message.
class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const noexcept { return kind_; }

private:
    ErrorKind kind_;
};

class BundleError : public Error {
public:
    explicit BundleError(const std::string& message) : Error(ErrorKind::bundle, message) {}
};

class ImageError : public Error {
public:
    explicit ImageError(const std::string& message) : Error(ErrorKind::image, message) {}
};

class RequestError : public Error {
public:
    explicit RequestError(const std::string& message) : Error(ErrorKind::request, message) {}
};

class BackendError : public Error {
public:
    explicit BackendError(const std::string& message) : Error(ErrorKind::backend, message) {}
};

class EngineError : public Error {
public:
    explicit EngineError(const std::string& message) : Error(ErrorKind::engine, message) {}
};

}  // namespace fopru
