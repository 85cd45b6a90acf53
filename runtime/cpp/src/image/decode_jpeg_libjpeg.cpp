// JPEG by libjpeg-turbo, which is what Pillow decodes with: the same bytes come out.
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>

#include "image/jpeg_header.h"

namespace fopru {
namespace {

// More scans than any picture has: each may cost a walk over all coefficients for a few bytes of file.
constexpr int most_scans = 200;

// libjpeg's state. C code jumps out of it by `longjmp`, so only `guarded` calls it, and nothing that it calls
// or that calls it up to there has a destructor to run.
class Decompressor {
public:
    explicit Decompressor(Bytes file) : file_(file) {
        // Not `jpeg_std_error`: its file writes to stderr, by code that Debian's archive cannot put into a
        // shared library.
        info_.err = &errors_;
        errors_.format_message = [](j_common_ptr, char*) {};
        errors_.reset_error_mgr = [](j_common_ptr info) { info->err->num_warnings = 0; };
        errors_.error_exit = [](j_common_ptr info) { std::longjmp(of(info)->out_, 1); };
        errors_.output_message = [](j_common_ptr) {};
        errors_.emit_message = [](j_common_ptr, int) {};  // Pillow goes on after warnings too
        source_.init_source = [](j_decompress_ptr) {};
        source_.fill_input_buffer = [](j_decompress_ptr) -> boolean { return FALSE; };  // there is no more
        source_.skip_input_data = skip;
        source_.resync_to_restart = jpeg_resync_to_restart;
        source_.term_source = [](j_decompress_ptr) {};
        progress_.progress_monitor = watch;
    }
    ~Decompressor() {
        if (created_) {
            jpeg_destroy_decompress(&info_);
        }
    }
    Decompressor(const Decompressor&) = delete;
    Decompressor& operator=(const Decompressor&) = delete;

    // Up to the first row, in `space`.
    void start(J_COLOR_SPACE space) {
        check(guarded(
            [](Decompressor& self, void* wanted) {
                jpeg_create_decompress(&self.info_);
                self.created_ = true;
                self.info_.client_data = &self;
                self.info_.progress = &self.progress_;
                self.info_.src = &self.source_;
                self.source_.next_input_byte = self.file_.data;
                self.source_.bytes_in_buffer = self.file_.size;
                int header = JPEG_HEADER_TABLES_ONLY;
                while (header == JPEG_HEADER_TABLES_ONLY) {
                    header = jpeg_read_header(&self.info_, FALSE);
                }
                if (header == JPEG_SUSPENDED) {
                    return false;
                }
                self.info_.out_color_space = *static_cast<J_COLOR_SPACE*>(wanted);
                return jpeg_start_decompress(&self.info_) == TRUE;
            },
            &space));
    }

    std::uint32_t width() const { return info_.output_width; }
    std::uint32_t height() const { return info_.output_height; }
    int components() const { return info_.output_components; }

    // One row of `width * components` bytes.
    void read_row(std::uint8_t* row) {
        check(guarded(
            [](Decompressor& self, void* to) {
                JSAMPROW rows[1] = {static_cast<JSAMPROW>(to)};
                return jpeg_read_scanlines(&self.info_, rows, 1) == 1;
            },
            row));
    }

    // What follows the last row: a file may end there, but may not go on with nonsense.
    void finish() {
        const Outcome outcome = guarded(
            [](Decompressor& self, void*) { return jpeg_finish_decompress(&self.info_) == TRUE; }, nullptr);
        check(outcome == Outcome::starved ? Outcome::done : outcome);
    }

private:
    enum class Outcome { done, starved, broken };
    using Step = bool (*)(Decompressor& self, void* argument);  // false: the file ended

    static Decompressor* of(j_common_ptr info) { return static_cast<Decompressor*>(info->client_data); }

    Outcome guarded(Step step, void* argument) {
        info_.client_data = this;  // creation clears it, and an error may come from creation itself
        if (setjmp(out_) != 0) {
            return Outcome::broken;
        }
        return step(*this, argument) ? Outcome::done : Outcome::starved;
    }

    void check(Outcome outcome) const {
        if (outcome == Outcome::broken) {
            throw Damaged("broken data stream when reading image file");
        }
        if (outcome == Outcome::starved) {
            throw Damaged("image file is truncated (" + std::to_string(source_.bytes_in_buffer) +
                          " bytes not processed)");
        }
    }

    static void skip(j_decompress_ptr info, long bytes) {
        jpeg_source_mgr& source = *info->src;
        if (bytes <= 0) {
            return;
        }
        const auto wanted = static_cast<std::size_t>(bytes);
        const std::size_t skipped = wanted < source.bytes_in_buffer ? wanted : source.bytes_in_buffer;
        source.next_input_byte += skipped;
        source.bytes_in_buffer -= skipped;
    }

    static void watch(j_common_ptr info) {
        if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > most_scans) {
            info->err->error_exit(info);
        }
    }

    Bytes file_;
    bool created_ = false;
    jpeg_decompress_struct info_{};
    jpeg_error_mgr errors_{};
    jpeg_source_mgr source_{};
    jpeg_progress_mgr progress_{};
    std::jmp_buf out_{};
};

}  // namespace

const char* jpeg_decoder() { return "libjpeg"; }

Decoded decode_jpeg(Bytes file) {
    JpegHeader header = read_jpeg_header(file);
    Decompressor jpeg(file);
    jpeg.start(header.components == 1 ? JCS_GRAYSCALE : header.components == 3 ? JCS_RGB : JCS_CMYK);
    if (jpeg.width() != header.width || jpeg.height() != header.height ||
        jpeg.components() != header.components) {
        throw Damaged("it has two sizes");
    }
    Decoded decoded{Image(static_cast<int>(header.height), static_cast<int>(header.width)),
                    std::move(header.metadata)};
    std::vector<std::uint8_t> row(static_cast<std::size_t>(header.width) *
                                  static_cast<std::size_t>(header.components));
    for (int y = 0; y < decoded.image.height; ++y) {
        std::uint8_t* to = decoded.image.row(y);
        if (header.components == 3) {
            jpeg.read_row(to);
            continue;
        }
        jpeg.read_row(row.data());
        for (int x = 0; x < decoded.image.width; ++x, to += 3) {
            const std::uint8_t* from =
                row.data() + static_cast<std::size_t>(x) * static_cast<std::size_t>(header.components);
            const Colour colour = header.components == 1 ? Colour{*from, *from, *from} : colour_of_cmyk(from);
            std::memcpy(to, &colour, 3);
        }
    }
    jpeg.finish();
    return decoded;
}

}  // namespace fopru
