/* Token windows: protocols A and B, calibration samples that a seed fixes, and texts that are too short. */
#include "tests/unit/scratch.h"

#include "worker/model/windows.h"

static struct err err;
static int32_t ids[100]; /* 0, 1, 2, … */
static const struct tokens text = {ids, 100};

static int fill(void **state) {
    (void)state;
    for (int i = 0; i < 100; i++)
        ids[i] = i;
    return 0;
}

static void protocol_a_takes_every_whole_window(void **state) {
    (void)state;
    struct windows w;
    int64_t dropped;
    assert_int_equal(windows_all(&text, 32, 0, &w, &dropped, &err), RC_OK);
    assert_true(w.count == 3 && w.length == 32 && dropped == 4 && w.first_label == 1);
    for (int i = 0; i < 96; i++)
        assert_int_equal(w.ids[i], i);
    windows_release(&w);
    assert_int_equal(windows_all(&text, 32, 2, &w, &dropped, &err), RC_OK);
    assert_true(w.count == 2 && dropped == 4);
    windows_release(&w);
    assert_int_equal(windows_all(&text, 50, 9, &w, &dropped, &err), RC_OK);
    assert_true(w.count == 2 && dropped == 0);
    windows_release(&w);
}

static void protocol_b_puts_bos_first_and_scores_the_second_half(void **state) {
    (void)state;
    struct windows w;
    int64_t dropped;
    assert_int_equal(windows_llama_cpp(&text, 32, 0, 77, &w, &dropped, &err), RC_OK);
    assert_true(w.count == 3 && w.first_label == 17 && dropped == 4);
    assert_true(w.ids[0] == 77 && w.ids[1] == 1 && w.ids[32] == 77 && w.ids[33] == 33 && w.ids[63] == 63);
    windows_release(&w);
    assert_int_equal(windows_llama_cpp(&text, 32, 0, -1, &w, &dropped, &err), RC_OK);
    assert_true(w.ids[0] == 0 && w.ids[32] == 32);
    windows_release(&w);
    assert_int_equal(windows_llama_cpp(&text, 3, 0, -1, &w, &dropped, &err), RC_INVALID);
}

static void calibration_samples_are_fixed_by_their_seed(void **state) {
    (void)state;
    struct windows w, again, other;
    assert_int_equal(windows_first(&text, 10, 3, &w, &err), RC_OK);
    assert_true(w.count == 3 && w.ids[29] == 29);
    windows_release(&w);
    assert_int_equal(windows_random(&text, 5, 6, 0, &w, &err), RC_OK);
    assert_int_equal(windows_random(&text, 5, 6, 0, &again, &err), RC_OK);
    assert_int_equal(windows_random(&text, 5, 6, 1, &other, &err), RC_OK);
    assert_memory_equal(w.ids, again.ids, 30 * sizeof *ids);
    assert_memory_not_equal(w.ids, other.ids, 30 * sizeof *ids);
    static const int32_t starts[] = {0, 10, 15, 25, 75, 85}; /* changing these changes everyone's results */
    for (int i = 0; i < 6; i++) {
        assert_int_equal(w.ids[5 * i], starts[i]);
        assert_int_equal(w.ids[5 * i + 4], starts[i] + 4);
    }
    windows_release(&w);
    windows_release(&again);
    windows_release(&other);
}

static void drawing_all_windows_gives_each_once(void **state) {
    (void)state;
    struct windows w;
    assert_int_equal(windows_random(&text, 5, 20, 9, &w, &err), RC_OK);
    assert_memory_equal(w.ids, ids, sizeof ids);
    windows_release(&w);
}

static void texts_that_are_too_short_are_refused_with_numbers(void **state) {
    (void)state;
    struct windows w;
    int64_t dropped;
    assert_int_equal(windows_all(&text, 101, 0, &w, &dropped, &err), RC_INVALID);
    assert_true(strstr(err.message, "100 tokens") != NULL && strstr(err.message, "101") != NULL);
    assert_int_equal(windows_random(&text, 50, 3, 0, &w, &err), RC_INVALID);
    assert_true(strstr(err.message, "2 windows of 50") != NULL && strstr(err.message, "3 were") != NULL &&
                strstr(err.message, "use a longer text") != NULL);
    assert_int_equal(windows_first(&text, 1, 1, &w, &err), RC_INVALID);
    assert_int_equal(windows_first(&text, 0, 1, &w, &err), RC_INVALID);
    assert_int_equal(windows_first(&text, 10, 0, &w, &err), RC_INVALID);
}

static void hashes_know_ids_and_length(void **state) {
    (void)state;
    struct windows a = {ids, 2, 6, 1}, b = {ids, 3, 4, 1}, c = {ids + 1, 2, 6, 1}, d = {ids, 2, 6, 4};
    struct hash128 ha = windows_hash(&a), hb = windows_hash(&b), hc = windows_hash(&c), hd = windows_hash(&d);
    assert_memory_not_equal(&ha, &hb, sizeof ha);
    assert_memory_not_equal(&ha, &hc, sizeof ha);
    assert_memory_equal(&ha, &hd, sizeof ha);
}

static struct tokenizer *load_tokenizer(void) {
    struct tokenizer *t = NULL;
    int dir = open("tests/fixture/tiny", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir >= 0);
    if (tokenizer_load(dir, &t, &err) != RC_OK) fail_msg("%s", err.message);
    close(dir);
    return t;
}

static void texts_become_tokens_or_say_why_not(void **state) {
    (void)state;
    struct tokenizer *t = load_tokenizer();
    struct tokens from_text, from_file;
    static const char sentence[] = "the one and the other";
    assert_int_equal(tokens_encode(t, sentence, strlen(sentence), 1 << 20, &from_text, &err), RC_OK);
    assert_true(from_text.count > 1);
    struct scratch s = scratch_open();
    char path[96];
    snprintf(path, sizeof path, "%s/text", s.path);
    scratch_write(&s, "text", sentence, strlen(sentence));
    assert_int_equal(tokens_read(t, path, 1 << 20, &from_file, &err), RC_OK);
    assert_int_equal(from_file.count, from_text.count);
    assert_memory_equal(from_file.ids, from_text.ids, (size_t)from_text.count * sizeof *from_text.ids);
    tokens_release(&from_text);
    tokens_release(&from_file);
    assert_int_equal(tokens_encode(t, sentence, strlen(sentence), 1, &from_text, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "vocab_size is 1:"));
    assert_int_equal(tokens_encode(t, "ab\xff", 3, 1 << 20, &from_text, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "2"));
    scratch_write(&s, "text", "", 0);
    assert_int_equal(tokens_read(t, path, 1 << 20, &from_file, &err), RC_OK);
    tokens_release(&from_file);
    assert_int_equal(tokens_read(t, s.path, 1 << 20, &from_file, &err), RC_INVALID);
    assert_int_equal(tokens_read(t, "/nowhere/at/all", 1 << 20, &from_file, &err), RC_NOT_FOUND);
    scratch_close(&s);
    tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(protocol_a_takes_every_whole_window),
        cmocka_unit_test(protocol_b_puts_bos_first_and_scores_the_second_half),
        cmocka_unit_test(calibration_samples_are_fixed_by_their_seed),
        cmocka_unit_test(drawing_all_windows_gives_each_once),
        cmocka_unit_test(texts_that_are_too_short_are_refused_with_numbers),
        cmocka_unit_test(hashes_know_ids_and_length),
        cmocka_unit_test(texts_become_tokens_or_say_why_not),
    };
    return cmocka_run_group_tests(tests, fill, NULL);
}
