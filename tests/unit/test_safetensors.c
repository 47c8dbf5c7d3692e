/* Safetensors files: what they hold is found; what lies about itself, or leads out of the folder, is refused. */
#include "tests/unit/scratch.h"

#include "worker/model/folder.h"
#include "worker/model/safetensors.h"

static struct err err;

/* Parses one file of this header and so many bytes of data. */
static enum rc parse(const char *header, size_t data_len, struct st_tensor **tensors, int64_t *count) {
    static unsigned char bytes[4096];
    size_t header_len = strlen(header);
    memset(bytes, 0, 8);
    bytes[0] = (unsigned char)header_len;
    bytes[1] = (unsigned char)(header_len >> 8);
    memcpy(bytes + 8, header, header_len);
    return safetensors_parse(bytes, 8 + header_len + data_len, "f", tensors, count, &err);
}

static void tensors_are_found_with_shape_type_and_bytes(void **state) {
    (void)state;
    struct st_tensor *t;
    int64_t count;
    assert_int_equal(parse("{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
                           "\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                           "\"z\":{\"dtype\":\"NEW\",\"shape\":[7],\"data_offsets\":[20,21]}}  ",
                           21, &t, &count),
                     RC_OK);
    assert_int_equal(count, 3);
    assert_string_equal(t[0].name, "a");
    assert_true(!t[0].readable && t[0].count == 1 && t[0].bytes == 8);
    assert_string_equal(t[0].stored_as, "I64");
    assert_string_equal(t[1].name, "b");
    assert_true(t[1].readable && t[1].type == DTYPE_BF16 && t[1].dims == 2 && t[1].shape[1] == 3 && t[1].count == 6);
    assert_ptr_equal(t[1].data, (const char *)t[0].data + 8);
    assert_true(!t[2].readable && t[2].bytes == 1);
    free(t);
}

#define ENTRY(name, dtype, shape, offsets)                                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void headers_that_lie_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data_len;
        const char *word; /* that the message must hold */
    } cases[] = {
        {"[]", 0, "no JSON object"},
        {"{\"a\":1}", 0, "'a'"},
        {"{" ENTRY("a", "U8", "[1]", "[1,2]") "}", 2, "hole"},
        {"{" ENTRY("a", "U8", "[2]", "[0,2]") "," ENTRY("b", "U8", "[2]", "[1,3]") "}", 3, "overlaps"},
        {"{" ENTRY("a", "U8", "[2]", "[0,2]") "," ENTRY("a", "U8", "[2]", "[2,4]") "}", 4, "twice"},
        {"{" ENTRY("a", "U8", "[2]", "[0,2]") "}", 3, "belong to none"},
        {"{" ENTRY("a", "U8", "[2]", "[0,2]") "}", 1, "beyond the end"},
        {"{" ENTRY("a", "U8", "[2]", "[2,0]") "}", 2, "out of order"},
        {"{" ENTRY("a", "U8", "[2]", "[-1,1]") "}", 2, "out of order"},
        {"{" ENTRY("a", "F32", "[2]", "[0,4]") "}", 4, "dtype × shape"},
        {"{" ENTRY("a", "F4", "[1]", "[0,1]") "}", 1, "dtype × shape"},
        {"{" ENTRY("a", "U8", "[-2]", "[0,2]") "}", 2, "sizes"},
        {"{" ENTRY("a", "U8", "[1.5]", "[0,2]") "}", 2, "sizes"},
        {"{" ENTRY("a", "U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "overflows"},
        {"{" ENTRY("a", "F64", "[2305843009213693952]", "[0,0]") "}", 0, "overflows"},
        {"{" ENTRY("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "8 dimensions"},
        {"{" ENTRY("a", "U8", "[18446744073709551617]", "[0,1]") "}", 1, "too large"},
        {"{" ENTRY("", "U8", "[1]", "[0,1]") "}", 1, "name"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "data_offsets"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct st_tensor *t;
        int64_t count;
        if (parse(cases[i].header, cases[i].data_len, &t, &count) == RC_OK) fail_msg("accepted: %s", cases[i].header);
        assert_null(t);
        if (strstr(err.message, cases[i].word) == NULL) fail_msg("'%s' lacks '%s'", err.message, cases[i].word);
    }
}

static void lengths_are_checked_before_anything_is_read(void **state) {
    (void)state;
    struct st_tensor *t;
    int64_t count;
    static const unsigned char huge[8] = {0, 0, 0, 0, 0, 0, 0, 0x80},
                               long_header[10] = {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    assert_int_equal(safetensors_parse("1234567", 7, "f", &t, &count, &err), RC_INVALID);
    assert_int_equal(safetensors_parse(huge, 8, "f", &t, &count, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "100000000"));
    assert_int_equal(safetensors_parse(long_header, 10, "f", &t, &count, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "truncated"));
}

#define A "{" ENTRY("a", "U8", "[2]", "[0,2]") "}"
#define B "{" ENTRY("b", "U8", "[3]", "[0,3]") "}"
static const char index_name[] = "model.safetensors.index.json";

static void write_index(const struct scratch *s, const char *weight_map) {
    char text[512];
    int len = snprintf(text, sizeof text, "{\"metadata\":{},\"weight_map\":%s}", weight_map);
    scratch_write(s, index_name, text, (size_t)len);
}

static void shards_are_one_model(void **state) {
    (void)state;
    struct scratch s = scratch_open();
    scratch_tensors(&s, "one.safetensors", A, 2);
    scratch_tensors(&s, "two.safetensors", B, 3);
    write_index(&s, "{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}");
    struct safetensors *st;
    if (safetensors_open(s.fd, &st, &err) != RC_OK) fail_msg("%s", err.message);
    int64_t count;
    assert_string_equal(safetensors_all(st, &count)[0].name, "a");
    assert_int_equal(count, 2);
    const struct st_tensor *b = safetensors_find(st, "b");
    assert_non_null(b);
    assert_string_equal(b->file, "two.safetensors");
    assert_int_equal(((const unsigned char *)b->data)[2], 2);
    assert_null(safetensors_find(st, "c"));
    safetensors_close(st);
    scratch_close(&s);
}

static void must_not_open(const struct scratch *s, enum rc rc, const char *word) {
    struct safetensors *st;
    assert_int_equal(safetensors_open(s->fd, &st, &err), rc);
    assert_null(st);
    if (strstr(err.message, word) == NULL) fail_msg("'%s' lacks '%s'", err.message, word);
}

static void indexes_that_do_not_fit_are_refused(void **state) {
    (void)state;
    struct scratch s = scratch_open();
    must_not_open(&s, RC_NOT_FOUND, index_name);
    scratch_tensors(&s, "one.safetensors", A, 2);
    scratch_tensors(&s, "again.safetensors", A, 2);
    write_index(&s, "{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}");
    must_not_open(&s, RC_NOT_FOUND, "two.safetensors");
    write_index(&s, "{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}");
    must_not_open(&s, RC_INVALID, "'b'");
    write_index(&s, "{\"a\":\"../one.safetensors\"}");
    must_not_open(&s, RC_INVALID, "../one.safetensors");
    write_index(&s, "{\"a\":\"..\"}");
    must_not_open(&s, RC_INVALID, "..");
    write_index(&s, "{\"a\":7}");
    must_not_open(&s, RC_INVALID, "'a'");
    write_index(&s, "{}");
    must_not_open(&s, RC_INVALID, "weight_map");
    write_index(&s, "{\"a\":\"again.safetensors\",\"__metadata__\":\"one.safetensors\"}");
    must_not_open(&s, RC_INVALID, "__metadata__");
    scratch_write(&s, index_name, "{", 1);
    must_not_open(&s, RC_MALFORMED, index_name);
    scratch_write(&s, "model.safetensors", "", 0);
    must_not_open(&s, RC_INVALID, "empty");
    scratch_close(&s);
}

static void one_tensor_in_two_shards_is_refused(void **state) {
    (void)state;
    struct scratch s = scratch_open();
    scratch_tensors(&s, "one.safetensors", A, 2);
    scratch_tensors(&s, "two.safetensors",
                    "{" ENTRY("b", "U8", "[1]", "[0,1]") "," ENTRY("a", "U8", "[1]", "[1,2]") "}", 2);
    write_index(&s, "{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}");
    must_not_open(&s, RC_INVALID, "both");
    scratch_close(&s);
}

static enum rc open_file(const struct scratch *s, const char *folder, const char *name) {
    int dir = openat(s->fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -1;
    assert_true(dir >= 0);
    int64_t bytes;
    enum rc rc = folder_open_file(dir, name, &fd, &bytes, &err);
    if (rc == RC_OK) close(fd);
    close(dir);
    return rc;
}

static void no_link_leads_out_but_those_of_a_hugging_face_cache(void **state) {
    (void)state;
    struct scratch s = scratch_open();
    static const char *const folders[] = {"repo",       "repo/blobs",  "repo/snapshots", "repo/snapshots/r",
                                          "repo/plain", "repo/plain/r"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        assert_int_equal(mkdirat(s.fd, folders[i], 0700), 0);
    scratch_write(&s, "secret", "x", 1);
    scratch_write(&s, "repo/blobs/abc", "x", 1);
    scratch_write(&s, "repo/snapshots/r/inside", "x", 1);
    assert_int_equal(symlinkat("../../blobs/abc", s.fd, "repo/snapshots/r/config.json"), 0);
    assert_int_equal(symlinkat("../../blobs/abc", s.fd, "repo/plain/r/config.json"), 0);
    assert_int_equal(symlinkat("inside", s.fd, "repo/snapshots/r/link"), 0);
    assert_int_equal(symlinkat("../../../secret", s.fd, "repo/snapshots/r/out"), 0);
    assert_int_equal(symlinkat("../../blobs/../../secret", s.fd, "repo/snapshots/r/sly"), 0);
    assert_int_equal(symlinkat("../../secret", s.fd, "repo/blobs/hop"), 0);
    assert_int_equal(symlinkat("../../blobs/hop", s.fd, "repo/snapshots/r/twice"), 0);
    scratch_write(&s, "repo/other", "x", 1);
    assert_int_equal(symlinkat("../other", s.fd, "repo/blobs/near"), 0);
    assert_int_equal(symlinkat("../../blobs/near", s.fd, "repo/snapshots/r/near"), 0);
    assert_int_equal(symlinkat("/etc/passwd", s.fd, "repo/snapshots/r/absolute"), 0);
    assert_int_equal(symlinkat("loop", s.fd, "repo/snapshots/r/loop"), 0);
    assert_int_equal(mkfifoat(s.fd, "repo/snapshots/r/fifo", 0600), 0);
    assert_int_equal(open_file(&s, "repo/snapshots/r", "config.json"), RC_OK);
    assert_int_equal(open_file(&s, "repo/snapshots/r", "link"), RC_OK);
    static const char *const refused[] = {"out",  "near", "sly", "twice", "absolute", "loop",
                                          "fifo", "../r", "..",  ".",     "",         "a/b"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (open_file(&s, "repo/snapshots/r", refused[i]) != RC_INVALID) fail_msg("'%s' was opened", refused[i]);
    assert_int_equal(open_file(&s, "repo/plain/r", "config.json"), RC_INVALID);
    assert_int_equal(open_file(&s, "repo/snapshots/r", "absent"), RC_NOT_FOUND);
    scratch_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_found_with_shape_type_and_bytes),
        cmocka_unit_test(headers_that_lie_are_refused_by_name),
        cmocka_unit_test(lengths_are_checked_before_anything_is_read),
        cmocka_unit_test(shards_are_one_model),
        cmocka_unit_test(indexes_that_do_not_fit_are_refused),
        cmocka_unit_test(one_tensor_in_two_shards_is_refused),
        cmocka_unit_test(no_link_leads_out_but_those_of_a_hugging_face_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
