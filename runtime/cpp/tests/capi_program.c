/* fopru.h from C11, for tests/test_cpp_capi.py: capi_program BUNDLE IMAGE [threads]. Ends with 0 where all is as the
 * header says, and prints the answer; else says what is not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fopru/fopru.h"

#define MUST(condition)                                                                              \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            fprintf(stderr, "line %d: not %s; %s\n", __LINE__, #condition, fopru_last_error());      \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)
#define OK(call) MUST((call) == FOPRU_OK && fopru_last_error()[0] == '\0')
#define REFUSED(call, words) MUST((call) == FOPRU_REQUEST_ERROR && strstr(fopru_last_error(), words) != NULL)

struct heard {
    char text[4096];
    size_t length;
    fopru_generator *generator;
    const fopru_encoded *encoded; /* on the host */
    int calls;
};

static int hear(const char *piece, size_t length, void *user) {
    struct heard *heard = user;
    MUST(length > 0 && heard->length + length < sizeof heard->text);
    memcpy(heard->text + heard->length, piece, length);
    heard->length += length;
    ++heard->calls;
    /* The generator is at work. */
    REFUSED(fopru_generator_forget(heard->generator), "the generator is at work");
    /* But what it made before may be read, by any thread. */
    int64_t rows = 0, width = 0;
    OK(fopru_encoded_features(heard->encoded, NULL, &rows, &width));
    float *features = malloc((size_t)(rows * width) * sizeof *features);
    MUST(features != NULL && rows > 0);
    OK(fopru_encoded_features(heard->encoded, features, NULL, NULL));
    free(features);
    return 0;
}

static int stop_at_once(const char *piece, size_t length, void *user) {
    (void)piece, (void)length;
    ++*(int *)user;
    return 1;
}

static int cancel_by_call(const char *piece, size_t length, void *user) {
    (void)piece, (void)length;
    fopru_cancel(user);
    return 0;
}

static void check_missing(fopru_generator *generator, const char *path) {
    fopru_bundle *bundle = NULL;
    fopru_generator *made = NULL;
    fopru_image *image = NULL;
    fopru_result *result = NULL;
    fopru_request request = fopru_request_default();
    size_t count = 0;
    const float *logits = NULL;
    REFUSED(fopru_bundle_open(NULL, FOPRU_VERIFY, &bundle), "path is NULL");
    REFUSED(fopru_bundle_open("x", FOPRU_VERIFY, NULL), "out is NULL");
    REFUSED(fopru_generator_create(NULL, NULL, &made), "bundle is NULL");
    REFUSED(fopru_image_from_file(NULL, path, &image), "generator is NULL");
    REFUSED(fopru_image_from_file(generator, NULL, &image), "path is NULL");
    REFUSED(fopru_image_from_bytes(generator, NULL, 4, &image), "bytes is NULL");
    REFUSED(fopru_image_from_frame(generator, NULL, &image), "frame is NULL");
    REFUSED(fopru_generate(generator, NULL, NULL, NULL, &result), "request is NULL");
    REFUSED(fopru_generate(generator, &request, NULL, NULL, NULL), "out is NULL");
    REFUSED(fopru_generate(generator, &request, NULL, NULL, &result), "prompt is NULL");
    request.prompt = "?";
    request.image_count = 1;
    REFUSED(fopru_generate(generator, &request, NULL, NULL, &result), "images is NULL");
    request.images = (const fopru_image *const *)&image;
    REFUSED(fopru_generate(generator, &request, NULL, NULL, &result), "an image of the request is NULL");
    request.image_count = 0;
    request.stop_count = 1;
    REFUSED(fopru_generate(generator, &request, NULL, NULL, &result), "stop is NULL");
    REFUSED(fopru_tokenize(generator, NULL, NULL, &count), "text is NULL");
    REFUSED(fopru_tokenize(generator, "x", NULL, NULL), "count is NULL");
    REFUSED(fopru_detokenize(generator, NULL, 1, NULL, &count), "ids is NULL");
    REFUSED(fopru_step(generator, 0, &logits), "call fopru_prefill first");
    REFUSED(fopru_generator_release(generator, NULL), "graph is NULL");
    REFUSED(fopru_generator_release(generator, "vision"), "no graph \"vision\": release one of ");
    MUST(fopru_generator_release(generator, "vision_encoder") == FOPRU_OK); /* not open */
    MUST(fopru_image_from_file(generator, "no/such/file", &image) == FOPRU_IMAGE_ERROR && image == NULL);
    MUST(fopru_image_from_bytes(generator, (const uint8_t *)"GIF8", 4, &image) == FOPRU_IMAGE_ERROR);
    MUST(fopru_image_from_bytes(generator, NULL, 0, &image) == FOPRU_IMAGE_ERROR);
    MUST(fopru_bundle_open("no/such/folder", FOPRU_VERIFY, &bundle) == FOPRU_BUNDLE_ERROR && bundle == NULL);
    MUST(fopru_last_error()[0] != '\0');
    /* Freeing and reading nothing is fine. */
    fopru_bundle_free(NULL), fopru_generator_free(NULL), fopru_image_free(NULL), fopru_encoded_free(NULL);
    fopru_result_free(NULL), fopru_cancel(NULL), fopru_request_init(NULL, 8), fopru_options_init(NULL, 8);
    MUST(fopru_result_token_ids(NULL, &count) == NULL && count == 0 && fopru_result_text(NULL)[0] == '\0');
    MUST(fopru_result_text_length(NULL) == 0);
    MUST(fopru_result_kept(NULL, 0, &count) == NULL && fopru_encoded_kept(NULL, 0, &count) == NULL);
    MUST(fopru_image_pixels(NULL, NULL, NULL) == NULL && fopru_image_tokens(NULL) == 0);
}

static void check_sizes(fopru_bundle *bundle, fopru_generator *generator) {
    fopru_options options = fopru_options_default();
    fopru_request request = fopru_request_default(), shorter;
    fopru_generator *made = NULL;
    fopru_result *result = NULL;
    MUST(options.size == sizeof options && request.size == sizeof request && request.max_new_tokens == 64);
    options.size = sizeof options + 8;
    REFUSED(fopru_generator_create(bundle, &options, &made), "size of fopru_options");
    options.size = 0;
    REFUSED(fopru_generator_create(bundle, &options, &made), "size of fopru_options");
    options = fopru_options_default();
    options.backend = "abacus";
    MUST(fopru_generator_create(bundle, &options, &made) == FOPRU_BACKEND_ERROR);
    options = fopru_options_default();
    options.threads = -1;
    REFUSED(fopru_generator_create(bundle, &options, &made), "threads is -1");
    request.size = 0;
    REFUSED(fopru_generate(generator, &request, NULL, NULL, &result), "size of fopru_request");
    /* A caller whose struct ends before `temperature`: what lies behind it is not read, nor written. */
    memset(&shorter, 0x7f, sizeof shorter);
    fopru_request_init(&shorter, offsetof(fopru_request, temperature));
    MUST(shorter.size == offsetof(fopru_request, temperature) && shorter.max_new_tokens == 64);
    MUST(((unsigned char *)&shorter)[offsetof(fopru_request, temperature)] == 0x7f);
    shorter.prompt = "?";
    shorter.max_new_tokens = 1;
    OK(fopru_generate(generator, &shorter, NULL, NULL, &result));
    fopru_result_free(result);
}

static void check_texts(fopru_generator *generator) {
    int64_t ids[64];
    char text[64];
    size_t count = 0, length = 0;
    OK(fopru_tokenize(generator, "a photo", NULL, &count));
    MUST(count > 0 && count < 64);
    ids[0] = -7;
    length = count - 1; /* one too few: nothing is written */
    OK(fopru_tokenize(generator, "a photo", ids, &length));
    MUST(length == count && ids[0] == -7);
    OK(fopru_tokenize(generator, "a photo", ids, &length));
    OK(fopru_detokenize(generator, ids, count, NULL, &length));
    MUST(length == strlen("a photo"));
    text[0] = '#';
    OK(fopru_detokenize(generator, ids, count, text, &length)); /* no room for the 0 */
    MUST(text[0] == '#');
    length = sizeof text;
    OK(fopru_detokenize(generator, ids, count, text, &length));
    MUST(strcmp(text, "a photo") == 0 && length == strlen(text));
    REFUSED(fopru_tokenize(generator, "\xff", NULL, &count), "UTF-8");
}

static void check_answer(fopru_generator *generator, const fopru_request *request) {
    fopru_encoded *encoded = NULL;
    fopru_result *result = NULL, *again = NULL;
    size_t count = 0, other = 0;
    int told = 0;
    OK(fopru_encode(generator, request, &encoded));
    struct heard heard = {{0}, 0, generator, encoded, 0};
    OK(fopru_generate(generator, request, hear, &heard, &result));
    MUST(strcmp(heard.text, fopru_result_text(result)) == 0 && heard.calls > 0);
    MUST(strlen(heard.text) == fopru_result_text_length(result));
    MUST(fopru_result_images(result) == 1 && fopru_result_pruned(result) && !fopru_result_reason(result));
    fopru_encoded_free(encoded);
    MUST(fopru_result_kept(result, 0, &count) != NULL);
    MUST((int64_t)count <= fopru_result_tokens_after(result, 0));
    MUST(fopru_result_tokens_after(result, 0) < fopru_result_tokens_before(result, 0));
    MUST(fopru_result_kept(result, 1, &count) == NULL && count == 0);
    MUST(fopru_result_timings(result).preprocess > 0 && fopru_result_timings(result).prefill > 0);
    printf("%s\n", fopru_result_json(result));

    OK(fopru_generate(generator, request, stop_at_once, &told, &again));
    MUST(told == 1 && strcmp(fopru_result_finish_reason(again), "cancelled") == 0);
    MUST(fopru_result_timings(again).preprocess < fopru_result_timings(result).preprocess + 1e-3);
    fopru_result_free(again);
    OK(fopru_generate(generator, request, cancel_by_call, generator, &again));
    MUST(strcmp(fopru_result_finish_reason(again), "cancelled") == 0);
    fopru_result_free(again);
    fopru_cancel(generator); /* no answer is under way */
    OK(fopru_generate(generator, request, NULL, NULL, &again));
    MUST(fopru_result_token_ids(again, &other) && fopru_result_token_ids(result, &count) && other == count);
    MUST(memcmp(fopru_result_token_ids(again, NULL), fopru_result_token_ids(result, NULL), count * 8) == 0);
    fopru_result_free(again);
    fopru_result_free(result);
}

/* The seconds of an image are in its first answer: neither a refused request nor another stage takes them away. */
static void check_preprocess(fopru_generator *generator, fopru_request request) {
    enum { HEIGHT = 3000, WIDTH = 2000 };
    uint8_t *pixels = calloc(HEIGHT, WIDTH * 3);
    MUST(pixels != NULL);
    fopru_frame frame = {FOPRU_RGB, HEIGHT, WIDTH, pixels, WIDTH * 3, NULL, 0, FOPRU_BT601_LIMITED};
    fopru_image *image = NULL;
    fopru_encoded *encoded = NULL;
    fopru_result *first = NULL, *second = NULL;
    size_t count = 0;
    struct timespec begin, end;
    timespec_get(&begin, TIME_UTC);
    OK(fopru_image_from_frame(generator, &frame, &image));
    timespec_get(&end, TIME_UTC);
    free(pixels);
    const double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    request.images = (const fopru_image *const *)&image;
    OK(fopru_warmup(generator, &request));
    OK(fopru_encode(generator, &request, &encoded));
    OK(fopru_prompt_ids(generator, &request, NULL, NULL, &count));
    request.top_k = -1;
    REFUSED(fopru_generate(generator, &request, NULL, NULL, &first), "top_k is -1");
    request.top_k = 0;
    OK(fopru_generate(generator, &request, NULL, NULL, &first));
    OK(fopru_generate(generator, &request, NULL, NULL, &second));
    MUST(fopru_result_timings(first).preprocess > 0.5 * seconds);
    MUST(fopru_result_timings(second).preprocess < 0.5 * seconds);
    fopru_result_free(first), fopru_result_free(second);
    fopru_encoded_free(encoded);
    fopru_image_free(image);
}

/* Greedy by stages: the tokens of `fopru_generate`. */
static void check_stages(fopru_generator *generator, fopru_request request) {
    fopru_encoded *encoded = NULL;
    fopru_result *result = NULL;
    const float *logits = NULL;
    const int64_t *tokens = NULL;
    int64_t vocabulary = 0, rows = 0, width = 0, best = 0;
    size_t count = 0, kept = 0;
    float *features = NULL;
    OK(fopru_generate(generator, &request, NULL, NULL, &result));
    tokens = fopru_result_token_ids(result, &count);
    OK(fopru_encode(generator, &request, &encoded));
    MUST(fopru_encoded_kept(encoded, 0, &kept) != NULL && kept > 0);
    MUST(fopru_encoded_images(encoded) == 1 && fopru_encoded_images(NULL) == 0);
    OK(fopru_encoded_features(encoded, NULL, &rows, &width));
    features = malloc((size_t)(rows * width) * sizeof *features);
    MUST(features != NULL && rows >= (int64_t)kept);
    OK(fopru_encoded_features(encoded, features, NULL, NULL));
    free(features);
    request.images = NULL; /* the visual tokens stand for them */
    OK(fopru_prefill(generator, &request, encoded, &logits, &vocabulary));
    for (size_t step = 0; step < count; ++step) {
        best = 0;
        for (int64_t id = 1; id < vocabulary; ++id) best = logits[id] > logits[best] ? id : best;
        MUST(best == tokens[step]);
        if (step + 1 < count) OK(fopru_step(generator, best, &logits));
    }
    REFUSED(fopru_step(generator, vocabulary, &logits), "token is");
    REFUSED(fopru_step(generator, -1, &logits), "token is");
    OK(fopru_prefill(generator, &request, encoded, &logits, NULL));
    for (int64_t left = request.max_new_tokens - 1; left > 0; --left) OK(fopru_step(generator, 0, &logits));
    REFUSED(fopru_step(generator, 0, &logits), "no room for another token");
    OK(fopru_generator_forget(generator));
    REFUSED(fopru_step(generator, 0, &logits), "call fopru_prefill first");
    fopru_encoded_free(encoded);
    fopru_result_free(result);
}

int main(int count, char **arguments) {
    fopru_bundle *bundle = NULL, *same = NULL;
    fopru_generator *generator = NULL, *other = NULL;
    fopru_image *image = NULL, *frame = NULL;
    fopru_request request = fopru_request_default();
    fopru_result *result = NULL;
    int64_t dims[6] = {0};
    int rank = 0;
    static const uint8_t pixels[48 * 64 * 3];
    fopru_frame camera = {FOPRU_RGB, 48, 64, pixels, 64 * 3, NULL, 0, FOPRU_BT601_LIMITED};
    MUST(count == 3);
    MUST(fopru_abi_version() >= FOPRU_ABI_VERSION && fopru_version()[0] != '\0');
    OK(fopru_bundle_open(arguments[1], FOPRU_VERIFY, &bundle));
    OK(fopru_bundle_open(arguments[1], FOPRU_NO_VERIFY, &same));
    MUST(strstr(fopru_bundle_info(bundle), "\"pruning\"") != NULL);
    OK(fopru_generator_create(bundle, NULL, &generator));
    MUST(fopru_generator_device(generator)[0] != '\0');
    MUST(fopru_generator_warning(generator)[0] == '\0');
    check_missing(generator, arguments[2]);
    check_sizes(bundle, generator);
    fopru_bundle_free(bundle); /* the generator keeps it */
    check_texts(generator);

    OK(fopru_image_from_file(generator, arguments[2], &image));
    MUST(fopru_image_pixels(image, dims, &rank) != NULL && rank > 2 && dims[0] > 0 && fopru_image_tokens(image) > 0);
    request.prompt = "What is this?";
    request.images = (const fopru_image *const *)&image;
    request.image_count = 1;
    request.ratio = 0.5;
    request.max_new_tokens = 12;
    request.ignore_eos = 1;
    OK(fopru_warmup(generator, &request));
    check_answer(generator, &request);
    check_stages(generator, request);
    check_preprocess(generator, request);

    OK(fopru_image_from_frame(generator, &camera, &frame));
    camera.format = 99;
    fopru_image *wrong = NULL;
    MUST(fopru_image_from_frame(generator, &camera, &wrong) == FOPRU_IMAGE_ERROR);
    OK(fopru_generator_create(same, NULL, &other)); /* another opening of the bundle */
    REFUSED(fopru_generate(other, &request, NULL, NULL, &result), "another bundle");
    fopru_generator_free(other);
    fopru_bundle_free(same);
    fopru_generator_free(generator);
    fopru_image_free(frame);
    fopru_image_free(image); /* images outlive the generator that prepared them */
    return 0;
}
