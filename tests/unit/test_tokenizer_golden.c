/* The tokenizer gives the ids that the reference implementation gave (tools/make-tokenizer-goldens). */
#include "cmocka_main.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "worker/model/tokenizer.h"

static const char goldens[] = "tests/golden/tokenizer";

static json_t *read_json(const char *path) {
    json_t *document;
    struct err e;
    if (json_parse_file(path, 64 << 20, &document, &e) != RC_OK) fail_msg("%s: %s", path, e.message);
    return document;
}

static void check_ids(const char *name, const json_t *expected, const int32_t *ids, size_t count, const char *text) {
    if (count != json_array_size(expected))
        fail_msg("%s: %zu ids, not %zu, of '%s'", name, count, json_array_size(expected), text);
    for (size_t i = 0; i < count; i++)
        if (ids[i] != json_integer_value(json_array_get(expected, i)))
            fail_msg("%s: id %zu is %d, not %lld, of '%s'", name, i, ids[i],
                     (long long)json_integer_value(json_array_get(expected, i)), text);
}

static void check_case(const char *name, const struct tokenizer *t, const json_t *item) {
    const json_t *text = json_object_get(item, "text");
    for (int special = 0; special < 2; special++) {
        int32_t *ids;
        size_t count;
        struct err e;
        if (tokenizer_encode(t, json_string_value(text), json_string_length(text), special, &ids, &count, &e) != RC_OK)
            fail_msg("%s: %s", name, e.message);
        check_ids(name, json_object_get(item, special ? "ids" : "plain"), ids, count, json_string_value(text));
        free(ids);
    }
}

static void replay(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", goldens, name);
    json_t *golden = read_json(path), *item;
    char *text = json_line(json_object_get(golden, "tokenizer"));
    struct tokenizer *t;
    struct err e;
    if (tokenizer_parse(text, strlen(text), &t, &e) != RC_OK) fail_msg("%s: %s %s", name, e.pointer, e.message);
    size_t i;
    json_array_foreach(json_object_get(golden, "cases"), i, item) check_case(name, t, item);
    assert_true(i > 10);
    tokenizer_free(t);
    free(text);
    json_decref(golden);
}

static void test_every_golden_file(void **state) {
    (void)state;
    DIR *dir = opendir(goldens);
    assert_non_null(dir);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        const char *dot = strrchr(entry->d_name, '.');
        if (dot == NULL || strcmp(dot, ".json") != 0 || strcmp(entry->d_name, "texts.json") == 0) continue;
        replay(entry->d_name);
        files++;
    }
    closedir(dir);
    assert_true(files > 30);
}

static const char *shared(void) {
    const char *path = getenv("HSAQ_SHARED");
    return path != NULL ? path : "../shared";
}

static char *read_text(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    struct stat st;
    assert_int_equal(fstat(fileno(f), &st), 0);
    char *text = malloc((size_t)st.st_size + 1);
    assert_non_null(text);
    *len = fread(text, 1, (size_t)st.st_size, f);
    text[*len] = '\0';
    fclose(f);
    return text;
}

static struct tokenizer *load(const char *folder) {
    char path[512];
    snprintf(path, sizeof path, "%s/data/%s", shared(), folder);
    struct tokenizer *t = NULL;
    struct err e;
    int dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0 || tokenizer_load(dir_fd, &t, &e) != RC_OK) fail_msg("cannot load %s", path);
    close(dir_fd);
    return t;
}

static uint64_t fnv1a(const int32_t *ids, size_t count) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < count; i++)
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ ((uint32_t)ids[i] >> shift & 0xff)) * 0x100000001b3;
    return hash;
}

static bool have_shared(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/data/tokenizers", shared());
    if (access(path, R_OK) == 0) return true;
    print_message("skipped: no reference data at %s (set HSAQ_SHARED)\n", shared());
    return false;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double slowest; /* seconds a megabyte */

static void check_text(const struct tokenizer *t, const char *folder, const json_t *row) {
    const char *name = json_string_value(json_object_get(row, "text"));
    char path[512];
    snprintf(path, sizeof path, "%s/data/text/%s", shared(), name);
    size_t len, count;
    char *text = read_text(path, &len);
    int32_t *ids;
    struct err e;
    double start = seconds();
    if (tokenizer_encode(t, text, len, true, &ids, &count, &e) != RC_OK) fail_msg("%s: %s", path, e.message);
    slowest = fmax(slowest, (seconds() - start) / ((double)len * 1e-6));
    char hash[20];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)fnv1a(ids, count));
    if ((json_int_t)count != json_integer_value(json_object_get(row, "count")) ||
        strcmp(hash, json_string_value(json_object_get(row, "fnv1a"))) != 0)
        fail_msg("%s on %s: %zu ids with hash %s", folder, name, count, hash);
    free(ids);
    free(text);
}

static double time_of(const struct tokenizer *t, const char *unit, size_t times) {
    size_t each = strlen(unit), len = each * times, count;
    char *text = malloc(len);
    for (size_t i = 0; i < len; i++)
        text[i] = unit[i % each];
    int32_t *ids;
    struct err e;
    double start = seconds();
    assert_int_equal(tokenizer_encode(t, text, len, true, &ids, &count, &e), RC_OK);
    double took = seconds() - start;
    free(ids);
    free(text);
    return took;
}

#if defined(__SANITIZE_ADDRESS__)
#define TIMED false
#elif defined(__has_feature)
#define TIMED !__has_feature(address_sanitizer)
#else
#define TIMED true
#endif
/* A sanitizer's time says nothing of ours. */
enum { LONG_RUN = TIMED ? 1000000 : 50000 };

/* AddressSanitizer's memmem looks at the whole rest of a text at every call: most of the time of these long ones. Short
 * ones are read under it in test_tokenizer. */
const char *__asan_default_options(void);  /* NOLINT(bugprone-reserved-identifier) */
const char *__asan_default_options(void) { /* NOLINT(bugprone-reserved-identifier) */
    return "intercept_memmem=0";
}

/* Eight times the text, less than twenty times the time: what grows with the square takes 64 times, what only leaves
 * the caches behind up to 13. Once in three tries, as another process may hold us up. */
static void check_a_million_of_one(const struct tokenizer *t, const char *folder) {
    static const char *const units[] = {"a", " ", "\xf0\x9f\x99\x82"};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++)
        for (int attempt = 0;; attempt++) {
            double eighth = time_of(t, units[u], LONG_RUN / 8), whole = time_of(t, units[u], LONG_RUN);
            if (!TIMED || whole <= 20 * eighth + 0.05) break;
            if (attempt == 2) fail_msg("%s '%s': %.3f s, then %.3f s", folder, units[u], eighth, whole);
        }
}

static void test_full_texts_and_long_runs(void **state) {
    (void)state;
    if (!have_shared()) skip();
    json_t *rows = read_json("tests/golden/tokenizer/texts.json"), *row;
    struct tokenizer *t = NULL;
    const char *loaded = "";
    size_t i;
    json_array_foreach(rows, i, row) {
        const char *folder = json_string_value(json_object_get(row, "tokenizer"));
        if (strcmp(folder, loaded) != 0) {
            tokenizer_free(t);
            t = load(loaded = folder);
            check_a_million_of_one(t, folder);
        }
        check_text(t, folder, row);
    }
    tokenizer_free(t);
    json_decref(rows);
    print_message("%.2f s of processor time a megabyte, at most\n", slowest);
}

static void check_line(const struct tokenizer *t, const char *text, size_t len, const char *line) {
    int32_t *ids;
    size_t count;
    struct err e;
    assert_int_equal(tokenizer_encode(t, text, len, false, &ids, &count, &e), RC_OK);
    for (size_t i = 0; i < count; i++) {
        char *end;
        if (strtol(line, &end, 10) != ids[i] || end == line) fail_msg("id %zu of '%.*s'", i, (int)len, text);
        line = end;
    }
    assert_int_equal(strspn(line, " \r"), strcspn(line, "\n"));
    free(ids);
}

/* Texts separated by a line; a line of ids for each. */
static void check_vectors(const char *folder, const char *vectors) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char path[512];
    size_t len;
    snprintf(path, sizeof path, "%s/data/tokenizers/vectors/ggml-vocab-%s.gguf.inp", shared(), vectors);
    char *texts = read_text(path, &len), *text = texts;
    memcpy(strrchr(path, '.'), ".out", sizeof ".out");
    char *lines = read_text(path, &len), *line = lines;
    struct tokenizer *t = load(folder);
    for (char *end; (end = strstr(text, separator)) != NULL; text = end + strlen(separator)) {
        check_line(t, text, (size_t)(end - text), line);
        line = strchr(line, '\n');
        assert_non_null(line);
        line++;
    }
    tokenizer_free(t);
    free(texts);
    free(lines);
}

static void test_published_vectors(void **state) {
    (void)state;
    if (!have_shared()) skip();
    check_vectors("tokenizers/gpt2", "gpt-2");
    check_vectors("tokenizers/llama3", "llama-bpe");
    check_vectors("tokenizers/llama2", "llama-spm");
    check_vectors("tokenizers/phi-3-mini", "phi-3");
    check_vectors("tokenizers/qwen3", "qwen2");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_golden_file),
        cmocka_unit_test(test_full_texts_and_long_runs),
        cmocka_unit_test(test_published_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
