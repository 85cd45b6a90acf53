// Files of the caller and of bundles: read whole with a limit, or mapped.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fopru {

// What the system said, as Python writes it: "[Errno 2] No such file or directory: 'name'". Whoever opens the
// file knows what kind of error it is for the caller, and throws that.
class FileError : public std::runtime_error {
public:
    FileError(int number, const std::string& message) : std::runtime_error(message), number_(number) {}
    int number() const noexcept { return number_; }  // errno

private:
    int number_;
};

// A file mapped for reading. Owns the mapping; the view lives as long. Whoever truncates the file meanwhile
// ends the process, so files of a bundle must not be changed while it is open. Move-only.
class MappedFile {
public:
    explicit MappedFile(const std::string& path);  // FileError
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    std::string_view bytes() const { return {data_, size_}; }

private:
    const char* data_ = nullptr;
    std::size_t size_ = 0;
};

std::string read_file(const std::string& path,
                      std::uint64_t most_bytes);  // FileError; EFBIG beyond the limit
// Size of a regular file, through links. None where there is none, also for a path with a zero byte.
std::optional<std::uint64_t> file_size(const std::string& path);
bool is_directory(const std::string& path);
// Whether something is there. FileError where that cannot be known: no permission, a name too long.
bool path_exists(const std::string& path);

// A path as Python's `Path` writes it: without "." parts, double slashes and a last slash; "." where that is
// nothing.
std::string plain_path(const std::string& path);
std::string join_path(const std::string& folder, const std::string& name);  // both plain

}  // namespace fopru
