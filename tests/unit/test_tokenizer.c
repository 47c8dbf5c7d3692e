/* What the tokenizer refuses, and that no text takes it long: files and texts are hostile. What it gives for good ones
 * is test_tokenizer_golden's. */
#include "tests/unit/scratch.h"

#include <time.h>

#include "base/strbuf.h"
#include "worker/model/tokenizer.h"

#define VOCAB "{\"a\":0,\"b\":1,\"ab\":2,\"c\":3,\" \":4}"
#define MODEL "\"model\":{\"vocab\":" VOCAB ",\"merges\":[\"a b\"]}"
#define ADDED(id, content) "{\"id\":" id ",\"content\":\"" content "\",\"special\":true}"
#define SPLIT(regex)                                                                                                   \
    "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":"             \
    "\"Isolated\"}}"

static struct tokenizer *parse(const char *json) {
    struct tokenizer *t;
    struct err e;
    if (tokenizer_parse(json, strlen(json), &t, &e) != RC_OK) fail_msg("%s %s: %s", e.pointer, e.message, json);
    return t;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const struct {
    const char *json;
    enum rc rc;
    const char *pointer, *message; /* a part of it */
} refused[] = {
    {"", RC_MALFORMED, "", ""},
    {"[]", RC_INVALID, "", "an object"},
    {"{}", RC_INVALID, "/model", "missing"},
    {"{\"model\":{\"type\":\"WordPiece\"}}", RC_UNSUPPORTED, "/model", "WordPiece"},
    {"{\"model\":{\"vocab\":[],\"merges\":[]}}", RC_INVALID, "/model/vocab", "an object"},
    {"{\"model\":{\"vocab\":{\"a\":\"x\"},\"merges\":[]}}", RC_INVALID, "/model/vocab/a", "integer"},
    {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", RC_INVALID, "/model/vocab/a", "between"},
    {"{\"model\":{\"vocab\":{\"a\":2147483648},\"merges\":[]}}", RC_INVALID, "/model/vocab/a", "between"},
    {"{\"model\":{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", RC_INVALID, "/model/vocab", "share id 1"},
    {"{\"model\":{\"vocab\":{\"a\":1,\"a\":2},\"merges\":[]}}", RC_INVALID, "/model/vocab/a", "twice"},
    {"{\"model\":{\"vocab\":" VOCAB "}}", RC_INVALID, "/model/merges", "missing"},
    {"{\"model\":{\"vocab\":" VOCAB ",\"merges\":[\"a b\",\"ab\"]}}", RC_INVALID, "/model/merges/1", "two tokens"},
    {"{\"model\":{\"vocab\":" VOCAB ",\"merges\":[[\"a\",1]]}}", RC_INVALID, "/model/merges/0", "two tokens"},
    {"{\"model\":{\"vocab\":" VOCAB ",\"merges\":[\"a x\"]}}", RC_INVALID, "/model/merges/0", "'x'"},
    {"{\"model\":{\"vocab\":" VOCAB ",\"merges\":[\"b a\"]}}", RC_INVALID, "/model/merges/0", "'ba'"},
    {"{\"model\":{\"dropout\":0.1,\"vocab\":{},\"merges\":[]}}", RC_UNSUPPORTED, "/model/dropout", "random"},
    {"{" MODEL ",\"added_tokens\":[" ADDED("9", "x") "]}", RC_INVALID, "/added_tokens/0/id", "give it 5"},
    {"{" MODEL ",\"added_tokens\":[" ADDED("4294967296", "x") "]}", RC_INVALID, "/added_tokens/0/id", "between"},
    {"{" MODEL ",\"added_tokens\":[" ADDED("0", "a") "," ADDED("0", "a") "]}", RC_INVALID, "/added_tokens", "twice"},
    {"{" MODEL ",\"added_tokens\":[{\"id\":0}]}", RC_INVALID, "/added_tokens/0/content", "a string"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Precompiled\"}}", RC_UNSUPPORTED, "/normalizer", "Precompiled"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{}]}}", RC_INVALID, "/normalizer/normalizers/0",
     "type"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}}", RC_INVALID,
     "/pre_tokenizer/replacement", "one character"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Nonsense\"}}", RC_UNSUPPORTED, "/pre_tokenizer", "Nonsense"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":\"Isolated\"}}",
     RC_UNSUPPORTED, "/pre_tokenizer/pattern", "empty pattern"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}}",
     RC_UNSUPPORTED, "/normalizer/pattern", "empty pattern"},
    {SPLIT("(a"), RC_INVALID, "/pre_tokenizer/pattern", "'(a' does not compile"},
    {SPLIT("a{1,2}+"), RC_UNSUPPORTED, "/pre_tokenizer/pattern", "second quantifier"},
    {SPLIT("[a-z&&[^b]]"), RC_UNSUPPORTED, "/pre_tokenizer/pattern", "intersection"},
    {SPLIT("(*LIMIT_MATCH=1)a"), RC_UNSUPPORTED, "/pre_tokenizer/pattern", "verb"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
     "{\"SpecialToken\":{\"id\":\"s\"}}],\"special_tokens\":{\"s\":{\"ids\":[7]}}}}",
     RC_INVALID, "/post_processor/special_tokens/s/ids/0", "vocabulary"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}}",
     RC_UNSUPPORTED, "/post_processor/single", "exactly once"},
};

static void test_refuses_bad_files_naming_the_place(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct tokenizer *t;
        struct err e = {0};
        enum rc rc = tokenizer_parse(refused[i].json, strlen(refused[i].json), &t, &e);
        if (rc != refused[i].rc || strcmp(e.pointer, refused[i].pointer) != 0 || !strstr(e.message, refused[i].message))
            fail_msg("%s: %s at '%s': %s", refused[i].json, rc_name(rc), e.pointer, e.message);
    }
}

static void test_not_utf8_names_the_offset(void **state) {
    (void)state;
    static const char *const texts[] = {"abc\xff", "ab\xc3\xa9\xc0\xaf", "a\xed\xa0\x80", "\xe2\x82"};
    static const char *const offsets[] = {"byte 3 ", "byte 4 ", "byte 1 ", "byte 0 "};
    struct tokenizer *t = parse("{" MODEL "}");
    for (size_t i = 0; i < 4; i++) {
        int32_t *ids;
        size_t count;
        struct err e;
        assert_int_equal(tokenizer_encode(t, texts[i], strlen(texts[i]), true, &ids, &count, &e), RC_INVALID);
        assert_non_null(strstr(e.message, offsets[i]));
    }
    tokenizer_free(t);
}

static void expect(const char *json, const char *text, bool special, const char *expected) {
    struct tokenizer *t = parse(json);
    struct strbuf got = STRBUF_INIT;
    int32_t *ids;
    size_t count;
    struct err e;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), special, &ids, &count, &e), RC_OK);
    for (size_t i = 0; i < count; i++)
        strbuf_printf(&got, "%d ", ids[i]);
    assert_string_equal(got.data != NULL ? got.data : "", expected);
    strbuf_release(&got);
    free(ids);
    tokenizer_free(t);
}

#define TEMPLATE(before, after)                                                                                        \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"" before                                 \
    "\"}},{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"" after                                            \
    "\"}}],\"special_tokens\":{\"a\":{\"ids\":[0]},\"b\":{\"ids\":[1]},\"c\":{\"ids\":[3,3]}}}"

static void test_templates_nest_and_give_bos(void **state) {
    (void)state;
    static const char nested[] = "{" MODEL ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":["
                                 "{\"type\":\"ByteLevel\"}," TEMPLATE("a", "b") "," TEMPLATE("c", "a") "]}}";
    expect(nested, "ab", true, "3 3 0 2 1 0 ");
    expect(nested, "ab", false, "2 ");
    expect(nested, "", true, "3 3 0 1 0 ");
    struct tokenizer *t = parse(nested);
    assert_int_equal(tokenizer_bos(t), 3);
    assert_int_equal(tokenizer_vocab_size(t), 5);
    tokenizer_free(t);
    t = parse("{\"model\":{\"vocab\":{\"a\":1,\"b\":70000},\"merges\":[]}}");
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_vocab_size(t), 70001);
    tokenizer_free(t);
}

/* An rstrip token's spaces may hold another token; truncation is not for us. */
static void test_added_tokens_overlap_and_truncation_is_ignored(void **state) {
    (void)state;
    expect("{" MODEL
           ",\"truncation\":{\"max_length\":1},\"added_tokens\":[{\"id\":5,\"content\":\"xx\",\"rstrip\":true,"
           "\"special\":true}," ADDED("6", "  ") "]}",
           "xx   abab", true, "5 6 4 2 2 ");
}

/* Merges that give what they took, or feed each other; patterns that match nothing anywhere. */
static void test_rules_that_lead_back_to_themselves_end(void **state) {
    (void)state;
    expect("{\"model\":{\"vocab\":{\"a\":0,\"\":1},\"merges\":[[\"a\",\"\"],[\"\",\"a\"],[\"\",\"\"]]}}", "aaa", true,
           "0 0 0 ");
    expect("{\"model\":{\"vocab\":{\"a\":0,\"aa\":1,\"aaa\":2,\"aaaa\":3},"
           "\"merges\":[\"a a\",\"a aa\",\"aa a\",\"aa aa\",\"a aaa\"]}}",
           "aaaaaaa", true, "3 2 ");
    expect(SPLIT("x*"), "abab a", true, "0 1 0 1 4 0 ");
    expect("{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x*\"},\"content\":\"b\"}}", "c",
           true, "1 3 1 ");
}

static void test_deep_nesting_is_refused(void **state) {
    (void)state;
    enum { DEPTH = 100000 };
    struct strbuf json = STRBUF_INIT;
    strbuf_puts(&json, "{" MODEL ",\"normalizer\":");
    for (int i = 0; i < DEPTH; i++)
        strbuf_puts(&json, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < DEPTH; i++)
        strbuf_puts(&json, "]}");
    strbuf_puts(&json, "}");
    struct tokenizer *t;
    struct err e = {0};
    assert_int_equal(tokenizer_parse(json.data, json.len, &t, &e), RC_MALFORMED);
    assert_non_null(strstr(e.message, "nested too deep"));
    strbuf_release(&json);
}

/* Many tokens cost what they take in the file; a huge id costs nothing; what no tokenizer needs is not read. */
static void test_gigantic_vocabularies(void **state) {
    (void)state;
    enum { TOKENS = 300000 };
    struct strbuf json = STRBUF_INIT;
    strbuf_puts(&json, "{\"model\":{\"vocab\":{\"a\":2147483646");
    for (int i = 0; i < TOKENS; i++)
        strbuf_printf(&json, ",\"t%d\":%d", i, i);
    strbuf_puts(&json, "},\"merges\":[]}}");
    double start = seconds();
    expect(json.data, "aa", true, "2147483646 2147483646 ");
    assert_true(seconds() - start < 5);
    strbuf_release(&json);

    struct scratch s = scratch_open();
    int fd = openat(s.fd, "tokenizer.json", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)257 << 20), 0);
    close(fd);
    struct tokenizer *t;
    struct err e = {0};
    assert_int_equal(tokenizer_load(s.fd, &t, &e), RC_TOO_LARGE);
    assert_non_null(strstr(e.message, "tokenizer.json"));
    scratch_close(&s);
}

static const char catastrophic[][24] = {"(a+)+b", "\\\\w*\\\\w*\\\\w*\\\\w*=", "(?:(?=\\\\w++)\\\\w)+="};

static void test_catastrophic_patterns_end_with_an_error(void **state) {
    (void)state;
    enum { LENGTH = 50000 };
    char *text = malloc(LENGTH);
    memset(text, 'a', LENGTH);
    text[LENGTH - 1] = 'b'; /* or PCRE2 sees that there is no b, and does not try */
    text[LENGTH / 2] = '=';
    memmove(text + 1, text, LENGTH / 2);
    for (size_t i = 0; i < sizeof catastrophic / sizeof *catastrophic; i++) {
        char json[400];
        snprintf(json, sizeof json, SPLIT("x|%s[!]|c"), catastrophic[i]);
        struct tokenizer *t = parse(json);
        int32_t *ids;
        size_t count;
        struct err e;
        double start = seconds();
        text[LENGTH - 2] = '!';
        assert_int_equal(tokenizer_encode(t, text, LENGTH, true, &ids, &count, &e), RC_INVALID);
        assert_non_null(strstr(e.message, "too many steps"));
        assert_true(seconds() - start < 15);
        tokenizer_free(t);
    }
    free(text);
}

/* The least of three, as another process may hold us up. */
static double time_of(const struct tokenizer *t, const char *unit, size_t times) {
    struct strbuf text = STRBUF_INIT;
    for (size_t i = 0; i < times; i++)
        strbuf_puts(&text, unit);
    double least = 1e9;
    for (int i = 0; i < 3; i++) {
        int32_t *ids;
        size_t count;
        struct err e;
        double start = seconds();
        assert_int_equal(tokenizer_encode(t, text.data, text.len, true, &ids, &count, &e), RC_OK);
        double took = seconds() - start;
        if (took < least) least = took;
        free(ids);
    }
    strbuf_release(&text);
    return least;
}

static void test_time_is_linear(void **state) {
    (void)state;
    static const char *const files[] = {
        "{" MODEL "}",
        "{" MODEL ",\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
        SPLIT("\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+|\\\\p{L}+"),
        "{" MODEL ",\"added_tokens\":[{\"id\":4,\"content\":\" \",\"rstrip\":true,\"lstrip\":true,\"special\":true}]}",
    };
    static const char *const units[] = {"a", " ", "ab", "a ", "\xcc\x95\xcc\x80", "\xf0\x9f\x99\x82", "\n"};
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        struct tokenizer *t = parse(files[f]);
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            double one = time_of(t, units[u], 50000), two = time_of(t, units[u], 100000);
            if (two > 3 * one + 0.01) fail_msg("file %zu, '%s': %.4f s, then %.4f s", f, units[u], one, two);
        }
        tokenizer_free(t);
    }
}

/* The trained fixture's: byte-level BPE as real models have it. */
static void test_a_million_times_one_character(void **state) {
    (void)state;
    static const char *const units[] = {"a", " ", "\n", "1", "\xf0\x9f\x99\x82"};
    int dir_fd = open("tests/fixture/tiny", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct tokenizer *t;
    struct err e;
    assert_int_equal(tokenizer_load(dir_fd, &t, &e), RC_OK);
    close(dir_fd);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        double eighth = time_of(t, units[u], 125000), whole = time_of(t, units[u], 1000000);
        if (whole > 12 * eighth + 0.05) fail_msg("'%s': %.3f s, then %.3f s", units[u], eighth, whole);
    }
    tokenizer_free(t);
}

static void test_blown_up_text_is_refused(void **state) {
    (void)state;
    struct strbuf json = STRBUF_INIT;
    strbuf_puts(&json, "{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 20; i++)
        strbuf_printf(&json, "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaa\"}",
                      i ? "," : "");
    strbuf_puts(&json, "]}}");
    struct tokenizer *t = parse(json.data);
    int32_t *ids;
    size_t count;
    struct err e;
    assert_int_equal(tokenizer_encode(t, "aaaaaaaa", 8, true, &ids, &count, &e), RC_INVALID);
    assert_non_null(strstr(e.message, "normalizers"));
    tokenizer_free(t);
    strbuf_release(&json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_bad_files_naming_the_place),
        cmocka_unit_test(test_not_utf8_names_the_offset),
        cmocka_unit_test(test_templates_nest_and_give_bos),
        cmocka_unit_test(test_added_tokens_overlap_and_truncation_is_ignored),
        cmocka_unit_test(test_rules_that_lead_back_to_themselves_end),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_gigantic_vocabularies),
        cmocka_unit_test(test_catastrophic_patterns_end_with_an_error),
        cmocka_unit_test(test_time_is_linear),
        cmocka_unit_test(test_a_million_times_one_character),
        cmocka_unit_test(test_blown_up_text_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
