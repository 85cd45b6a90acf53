/* fopru_rt: run a bundle of a vision-language model with few visual tokens, without Python.
 *
 *     fopru_bundle *bundle = NULL;
 *     fopru_generator *generator = NULL;
 *     fopru_image *image = NULL;
 *     fopru_result *result = NULL;
 *     if (fopru_bundle_open("bundles/demo", FOPRU_VERIFY, &bundle) ||
 *         fopru_generator_create(bundle, NULL, &generator) ||
 *         fopru_image_from_file(generator, "photo.png", &image)) { puts(fopru_last_error()); return 1; }
 *     fopru_request request = fopru_request_default();
 *     request.prompt = "How many digits are there?";
 *     request.images = (const fopru_image *const *)&image;
 *     request.image_count = 1;
 *     request.ratio = 0.3;
 *     if (fopru_generate(generator, &request, NULL, NULL, &result)) { puts(fopru_last_error()); return 1; }
 *     puts(fopru_result_text(result));
 *     fopru_result_free(result), fopru_image_free(image), fopru_generator_free(generator), fopru_bundle_free(bundle);
 *
 * Rules of every function:
 * - It returns FOPRU_OK (0) or why not; `fopru_last_error` then has one sentence, until the next call of the same
 *   thread. Outputs are set on success alone. Nothing is thrown across this border.
 * - `*_open`, `*_create`, `*_from_*`, `encode` and `generate` hand over an object that the caller frees with the
 *   function named after its type; freeing NULL does nothing. An object keeps alive what it was made of: a bundle
 *   may be freed right after its generators were created.
 * - Strings are UTF-8 and end in 0. Pointers that are returned belong to the object asked, and live as long.
 * - A bundle, an image, encoded visual tokens on the host and a result never change: any thread may read them. A
 *   generator serves one call at a time (another one, also from the text callback, is refused), but `fopru_cancel`,
 *   `fopru_image_*`, `fopru_tokenize` and `fopru_detokenize` may come from any thread. Two generators of one bundle
 *   may run in two threads.
 * - Tensors are C-contiguous; [a, b] says their dims.
 */
#ifndef FOPRU_FOPRU_H
#define FOPRU_FOPRU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define FOPRU_API __declspec(dllexport)
#else
#define FOPRU_API __attribute__((visibility("default")))
#endif

/* Grows when a function or a field is added; `fopru_abi_version` of the library must be at least that of the header,
 * which a program may check at its start. The library's soname stays: a function never changes its meaning. A struct
 * that has a `size` may grow at its end: the library reads as far as the caller's size, and takes the defaults for the
 * rest. The other structs never change. */
#define FOPRU_ABI_VERSION 1
FOPRU_API int fopru_abi_version(void);
FOPRU_API const char *fopru_version(void); /* of the library, such as "0.1.0" */

typedef enum fopru_status {
    FOPRU_OK = 0,
    FOPRU_BUNDLE_ERROR = 1,  /* the bundle is missing, damaged, or newer than this library */
    FOPRU_IMAGE_ERROR = 2,   /* an image cannot be read or used */
    FOPRU_REQUEST_ERROR = 3, /* a value of the caller is out of range */
    FOPRU_BACKEND_ERROR = 4, /* the inference library is missing, or a graph failed */
    FOPRU_ENGINE_ERROR = 5,  /* TensorRT engines are missing, or of another device */
    FOPRU_NO_MEMORY = 6,
    FOPRU_INTERNAL_ERROR = 7 /* a fault of this library */
} fopru_status;

FOPRU_API const char *fopru_last_error(void); /* of this thread; "" after a success */

/* ---- bundle ---- */

typedef struct fopru_bundle fopru_bundle;
enum { FOPRU_NO_VERIFY = 0, FOPRU_VERIFY = 1 }; /* whether the SHA-256 of every file is checked */

FOPRU_API fopru_status fopru_bundle_open(const char *path, int verify, fopru_bundle **out);
FOPRU_API void fopru_bundle_free(fopru_bundle *bundle);
/* `bundle.json` in short, as JSON: model, layout, pruning, decoder, graphs, bytes. */
FOPRU_API const char *fopru_bundle_info(const fopru_bundle *bundle);

/* ---- generator ---- */

typedef struct fopru_generator fopru_generator;

typedef struct fopru_options {
    size_t size;              /* of this struct as the caller knows it: `fopru_options_default` sets it */
    const char *backend;      /* "onnxruntime", "ort-cuda", "ort-tensorrt" or "tensorrt" */
    int threads;              /* inside an operator; 0: the backend's choice */
    const char *engines;      /* TensorRT: folder of engines; NULL: the bundle's own */
    uint64_t reuse_features;  /* bytes of visual tokens that are kept for later requests; 0: none */
    int reuse_prefix;         /* whether the KV cache of the last answer is kept for a prompt that begins like it */
} fopru_options;

/* Writes the defaults, and `size`, to a struct of so many bytes. */
FOPRU_API void fopru_options_init(fopru_options *options, size_t size);
static inline fopru_options fopru_options_default(void) {
    fopru_options options;
    fopru_options_init(&options, sizeof options);
    return options;
}

/* `options` NULL: the defaults. The inference library is loaded now, graphs are opened when first needed. */
FOPRU_API fopru_status fopru_generator_create(fopru_bundle *bundle, const fopru_options *options,
                                              fopru_generator **out);
FOPRU_API void fopru_generator_free(fopru_generator *generator);
FOPRU_API const char *fopru_generator_device(fopru_generator *generator); /* library, version, device */
/* Why answers were slower than they could be, as a sentence; "" where nothing is to be said. Valid until the next answer
 * or warm-up begins: ask in the thread that asks for those. Steps of `fopru_step` are not told about. */
FOPRU_API const char *fopru_generator_warning(fopru_generator *generator);
/* What is kept for later requests: visual tokens, the KV cache of the last answer. */
FOPRU_API fopru_status fopru_generator_forget(fopru_generator *generator);
/* Close a graph by its name ("vision_encoder"; `fopru_bundle_info` has all), to free its memory; it is opened again
 * when needed. One that is not open is no error; a name that the bundle lacks is one. */
FOPRU_API fopru_status fopru_generator_release(fopru_generator *generator, const char *graph);

/* ---- images ---- */

/* A picture as the encoder takes it: cut, resized and normalised. It serves all generators of one `fopru_bundle`. */
typedef struct fopru_image fopru_image;

typedef enum fopru_pixel_format {
    FOPRU_RGB = 0,
    FOPRU_BGR = 1,
    FOPRU_RGBA = 2, /* alpha is dropped */
    FOPRU_BGRA = 3,
    FOPRU_GRAY = 4,
    FOPRU_NV12 = 5
} fopru_pixel_format;

typedef enum fopru_colour_matrix { /* of NV12 */
    FOPRU_BT601_LIMITED = 0,
    FOPRU_BT601_FULL = 1,
    FOPRU_BT709_LIMITED = 2,
    FOPRU_BT709_FULL = 3
} fopru_colour_matrix;

/* 8 bits a channel, read during the call alone. */
typedef struct fopru_frame {
    int format;            /* fopru_pixel_format */
    int height, width;     /* pixels; even for NV12 */
    const uint8_t *data;   /* [height, stride]; NV12: luma */
    size_t stride;         /* bytes from a row to the next */
    const uint8_t *chroma; /* NV12: [height / 2, chroma_stride], U and V by turns */
    size_t chroma_stride;
    int matrix; /* fopru_colour_matrix, of NV12 */
} fopru_frame;

/* PNG, JPEG, BMP or GIF; rotated as EXIF says. */
FOPRU_API fopru_status fopru_image_from_file(fopru_generator *generator, const char *path, fopru_image **out);
FOPRU_API fopru_status fopru_image_from_bytes(fopru_generator *generator, const uint8_t *bytes, size_t size,
                                              fopru_image **out);
FOPRU_API fopru_status fopru_image_from_frame(fopru_generator *generator, const fopru_frame *frame,
                                              fopru_image **out);
FOPRU_API void fopru_image_free(fopru_image *image);
/* float32; `dims` gets up to 6 dims, `rank` their number. */
FOPRU_API const float *fopru_image_pixels(const fopru_image *image, int64_t dims[6], int *rank);
FOPRU_API int64_t fopru_image_tokens(const fopru_image *image); /* visual tokens before pruning */

/* ---- requests ---- */

typedef struct fopru_turn { /* an earlier turn of a chat */
    const char *prompt;
    const fopru_image *const *images;
    size_t image_count;
    const char *answer;
} fopru_turn;

typedef struct fopru_encoded fopru_encoded;

typedef struct fopru_request {
    size_t size; /* of this struct as the caller knows it: `fopru_request_default` sets it */
    const char *prompt;
    const fopru_image *const *images; /* of this turn; NULL, also as a whole, where `encoded` has them */
    size_t image_count;               /* counts those that `encoded` has, too */
    const fopru_turn *history; /* oldest first */
    size_t history_count;
    double ratio;     /* fraction of visual tokens KEPT, in (0, 1]; 0: not given */
    int64_t tokens;   /* visual tokens KEPT per image; 0: not given. With neither, the bundle's default */
    const char *selector; /* "graph": the bundle's own strategy */
    int64_t max_new_tokens;
    double temperature; /* 0: greedy */
    int64_t top_k;      /* 0: off */
    double top_p;       /* 1: off */
    double min_p;       /* 0: off */
    double repetition_penalty; /* 1: off */
    uint64_t seed;
    const char *const *stop; /* strings that end the answer */
    size_t stop_count;
    int ignore_eos;
    /* From `fopru_encode`; NULL: encode all. Visual tokens of the first images, counted from the oldest turn: what
     * `images` has in their places is not looked at. */
    const fopru_encoded *encoded;
} fopru_request;

FOPRU_API void fopru_request_init(fopru_request *request, size_t size); /* as `fopru_options_init` */
static inline fopru_request fopru_request_default(void) {
    fopru_request request;
    fopru_request_init(&request, sizeof request);
    return request;
}

/* Called in the thread of `fopru_generate` with text that is certain: `length` bytes, whole characters, never empty.
 * Return 0 to go on, anything else to cancel: it is not called again then. */
typedef int (*fopru_on_text)(const char *piece, size_t length, void *user);

/* ---- answers ---- */

typedef struct fopru_result fopru_result;

FOPRU_API fopru_status fopru_generate(fopru_generator *generator, const fopru_request *request,
                                      fopru_on_text on_text, void *user, fopru_result **out);
/* End the answer under way before its next token, from any thread or signal handler; the result says "cancelled". An
 * answer that begins later is not touched, so a thread that has just been started may miss it. */
FOPRU_API void fopru_cancel(fopru_generator *generator);
/* Do once what requests of this shape need: graphs are opened, memory is asked for, steps are recorded. What was kept of
 * earlier requests is forgotten. */
FOPRU_API fopru_status fopru_warmup(fopru_generator *generator, const fopru_request *request);
FOPRU_API void fopru_result_free(fopru_result *result);

typedef struct fopru_timings { /* seconds; an image's own are in `preprocess` of its first answer */
    double load, preprocess, vision, embed, prefill, decode;
} fopru_timings;

FOPRU_API const char *fopru_result_text(const fopru_result *result);
FOPRU_API size_t fopru_result_text_length(const fopru_result *result); /* bytes: an answer may hold zeros */
FOPRU_API const int64_t *fopru_result_token_ids(const fopru_result *result, size_t *count);
FOPRU_API const char *fopru_result_finish_reason(const fopru_result *result); /* eos, stop, length, cancelled */
FOPRU_API int fopru_result_pruned(const fopru_result *result);
FOPRU_API const char *fopru_result_reason(const fopru_result *result); /* why not pruned; NULL where it was */
/* Of the image with this index: visual tokens before and after pruning, kept positions counted through its tiles. */
FOPRU_API size_t fopru_result_images(const fopru_result *result);
FOPRU_API int64_t fopru_result_tokens_before(const fopru_result *result, size_t image);
FOPRU_API int64_t fopru_result_tokens_after(const fopru_result *result, size_t image);
FOPRU_API const int64_t *fopru_result_kept(const fopru_result *result, size_t image, size_t *count);
FOPRU_API fopru_timings fopru_result_timings(const fopru_result *result);
FOPRU_API const char *fopru_result_json(const fopru_result *result); /* everything, keys as of `Result.to_dict()` */

/* ---- stages alone ---- */

/* Encode and prune. `ratio`, `tokens`, `selector` and `seed` of `request` are read, and `images` of all turns. The
 * visual tokens go with requests to the same generator, or to another one of the same `fopru_bundle` where both compute
 * on the host; on a device they are used, and freed, in the generator's thread. They keep the generator alive. */
FOPRU_API fopru_status fopru_encode(fopru_generator *generator, const fopru_request *request, fopru_encoded **out);
FOPRU_API void fopru_encoded_free(fopru_encoded *encoded);
FOPRU_API size_t fopru_encoded_images(const fopru_encoded *encoded);
/* float32 [rows, width] of all images, copied to `out` from wherever they are; `out` NULL asks for the sizes. On a
 * device, refused while the generator serves another call. */
FOPRU_API fopru_status fopru_encoded_features(const fopru_encoded *encoded, float *out, int64_t *rows,
                                              int64_t *width);
FOPRU_API const int64_t *fopru_encoded_kept(const fopru_encoded *encoded, size_t image, size_t *count);

/* Token ids of the pruned prompt, one image id per visual token. `encoded` NULL: that of the request; images that it
 * lacks are encoded. `*count` says how many ids fit in `out`, and becomes their number; where they do not fit, or `out`
 * is NULL, nothing is written and FOPRU_OK is returned: compare `*count` with the room there was. */
FOPRU_API fopru_status fopru_prompt_ids(fopru_generator *generator, const fopru_request *request,
                                        const fopru_encoded *encoded, int64_t *out, size_t *count);
/* Text to ids and back, without the prompt's template; in the same way. Special tokens are left out of the text, and a 0
 * is written behind it, which `*length` on return does not count, but `out` needs room for. */
FOPRU_API fopru_status fopru_tokenize(fopru_generator *generator, const char *text, int64_t *out, size_t *count);
FOPRU_API fopru_status fopru_detokenize(fopru_generator *generator, const int64_t *ids, size_t count, char *out,
                                        size_t *length);
/* Run the prompt of a request: float32 logits [vocabulary] of its last position, valid until the next call on this
 * generator. */
FOPRU_API fopru_status fopru_prefill(fopru_generator *generator, const fopru_request *request,
                                     const fopru_encoded *encoded, const float **logits, int64_t *vocabulary);
/* Run one more token behind `fopru_prefill` or the last step, at most `max_new_tokens` - 1 of the request. */
FOPRU_API fopru_status fopru_step(fopru_generator *generator, int64_t token, const float **logits);

#ifdef __cplusplus
}
#endif
#endif
