#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/python_text.h"

namespace fopru {

namespace {

[[noreturn]] void fail(int number, const std::string& path) {
    std::string why = std::generic_category().message(number);
    throw FileError(number, "[Errno " + std::to_string(number) + "] " + why + ": " + python_repr(path));
}

// Owns a descriptor.
class Descriptor {
public:
    explicit Descriptor(const std::string& path) {
        if (path.find('\0') != std::string::npos) throw FileError(EINVAL, "embedded null byte");
        // Without waiting: a pipe in the place of a file would never be opened.
        do {
            number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        } while (number_ < 0 && errno == EINTR);
        if (number_ < 0) fail(errno, path);
    }
    ~Descriptor() { ::close(number_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }

private:
    int number_ = -1;
};

std::size_t size_of(const Descriptor& file, const std::string& path) {
    struct stat info {};
    if (::fstat(file.number(), &info) != 0) fail(errno, path);
    if (S_ISDIR(info.st_mode)) fail(EISDIR, path);
    if (!S_ISREG(info.st_mode)) fail(ESPIPE, path);  // a pipe or a device: neither size nor end
    return static_cast<std::size_t>(info.st_size);
}

// Zero where it is there, else errno.
int status(const std::string& path, struct stat& info) {
    if (path.find('\0') != std::string::npos) return EINVAL;
    return ::stat(path.c_str(), &info) == 0 ? 0 : errno;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    Descriptor file(path);
    size_ = size_of(file, path);
    if (size_ == 0) return;  // nothing can be mapped, and nothing has to be
    void* place = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number(), 0);
    if (place == MAP_FAILED) fail(errno, path);
    data_ = static_cast<const char*>(place);
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

std::string read_file(const std::string& path, std::uint64_t most_bytes) {
    Descriptor file(path);
    std::size_t size = size_of(file, path);
    if (size > most_bytes) fail(EFBIG, path);
    std::string out(size, '\0');
    for (std::size_t at = 0; at < size;) {
        ssize_t got = ::read(file.number(), &out[at], size - at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(errno, path);
        if (got == 0) {  // it became shorter
            out.resize(at);
            break;
        }
        at += static_cast<std::size_t>(got);
    }
    return out;
}

std::optional<std::uint64_t> file_size(const std::string& path) {
    struct stat info {};
    if (status(path, info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
    return static_cast<std::uint64_t>(info.st_size);
}

bool is_directory(const std::string& path) {
    struct stat info {};
    return status(path, info) == 0 && S_ISDIR(info.st_mode);
}

bool path_exists(const std::string& path) {
    struct stat info {};
    int error = status(path, info);
    if (error == EINVAL && path.find('\0') != std::string::npos)
        throw FileError(EINVAL, "embedded null byte");
    if (error != 0 && error != ENOENT && error != ENOTDIR) fail(error, path);
    return error == 0;
}

std::string plain_path(const std::string& path) {
    bool two = path.size() > 1 && path[0] == '/' && path[1] == '/' && (path.size() == 2 || path[2] != '/');
    std::string root = path.empty() || path[0] != '/' ? "" : two ? "//" : "/";
    std::string out;
    for (std::size_t at = 0; at < path.size();) {
        std::size_t end = path.find('/', at);
        if (end == std::string::npos) end = path.size();
        std::string part = path.substr(at, end - at);
        if (!part.empty() && part != ".") out += (out.empty() ? "" : "/") + part;
        at = end + 1;
    }
    out = root + out;
    return out.empty() ? "." : out;
}

std::string join_path(const std::string& folder, const std::string& name) {
    if (!name.empty() && name[0] == '/') return name;
    if (name == ".") return folder;
    if (folder == ".") return name;
    return folder.back() == '/' ? folder + name : folder + "/" + name;
}

}  // namespace fopru
