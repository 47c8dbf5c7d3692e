/* Fingerprints: one changed byte changes the keys of its Linear and of exactly what lies downstream of it. */
#include "tests/unit/scratch.h"

#include "worker/model/fingerprint.h"
#include "worker/pipeline/profile.h"

#define GOLDEN "tests/golden/models/qwen2"
static struct err err;
static int32_t ids[] = {1, 2, 3, 4, 5, 6};
static const struct windows calibration = {ids, 2, 3, 1};

struct opened {
    struct model *model;
    struct fingerprints *prints;
};

static struct opened open_prints(const char *path) {
    struct opened o;
    if (model_open("m", path, &o.model, &err) != RC_OK) fail_msg("%s", err.message);
    o.prints = fingerprints_new(o.model);
    while (fingerprints_next(o.prints) != NULL)
        ;
    fingerprints_chain(o.prints, &calibration);
    return o;
}

static void close_prints(struct opened *o) {
    fingerprints_free(o->prints);
    model_close(o->model);
}

static bool same(const struct hash128 *a, const struct hash128 *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

/* Copies the golden with the last byte of one tensor flipped. */
static void copy_with_flip(const struct scratch *s, const struct model *m, const char *tensor) {
    size_t len;
    int64_t count;
    char *bytes = scratch_load(GOLDEN "/model.safetensors", &len);
    const struct st_tensor *t = safetensors_find(m->tensors, tensor), *all = safetensors_all(m->tensors, &count);
    assert_non_null(t);
    const char *end = NULL; /* of the mapped file: the data end of the last tensor */
    for (int64_t i = 0; i < count; i++)
        if ((const char *)all[i].data + all[i].bytes > end) end = (const char *)all[i].data + all[i].bytes;
    bytes[len - (size_t)(end - ((const char *)t->data + t->bytes)) - 1] ^= 1;
    scratch_write(s, "model.safetensors", bytes, len);
    scratch_copy(s, GOLDEN "/config.json", "config.json");
    free(bytes);
}

/* Linears: 0–2 q k v, 3 o, 4–5 gate up, 6 down; 7–13 of block 1; 14 lm_head. */
static void a_flipped_byte_invalidates_exactly_what_is_downstream(void **state) {
    (void)state;
    static const struct {
        const char *tensor;
        int own;   /* the Linear whose weight hash changes; −1: none */
        int first; /* inputs of Linears from this one on change */
    } cases[] = {
        {"model.embed_tokens.weight", -1, 0},
        {"model.layers.0.input_layernorm.weight", -1, 0},
        {"model.layers.0.self_attn.q_proj.weight", 0, 3},
        {"model.layers.0.self_attn.v_proj.bias", 2, 3},
        {"model.layers.0.self_attn.o_proj.weight", 3, 4},
        {"model.layers.0.post_attention_layernorm.weight", -1, 4},
        {"model.layers.0.mlp.up_proj.weight", 5, 6},
        {"model.layers.0.mlp.down_proj.weight", 6, 7},
        {"model.layers.1.self_attn.k_proj.weight", 8, 10},
        {"model.norm.weight", -1, 14},
        {"lm_head.weight", 14, 15},
    };
    struct opened before = open_prints(GOLDEN);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch s = scratch_open();
        copy_with_flip(&s, before.model, cases[i].tensor);
        struct opened after = open_prints(s.path);
        for (int l = 0; l < before.model->linear_count; l++) {
            bool weight = same(fingerprints_weight(before.prints, l), fingerprints_weight(after.prints, l));
            bool input = same(fingerprints_input(before.prints, l), fingerprints_input(after.prints, l));
            if (weight != (l != cases[i].own) || input != (l < cases[i].first))
                fail_msg("%s: Linear %d: weight %s, input %s", cases[i].tensor, l, weight ? "same" : "changed",
                         input ? "same" : "changed");
        }
        close_prints(&after);
        scratch_close(&s);
    }
    close_prints(&before);
}

static void keys_depend_on_candidate_backend_and_windows(void **state) {
    (void)state;
    struct opened o = open_prints(GOLDEN);
    char base[HASH_TEXT_SIZE], other[HASH_TEXT_SIZE];
    fingerprints_drift_key(o.prints, 3, "rtn4g64", "cpu/fp32", base);
    assert_string_equal(base, fingerprints_drift_key(o.prints, 3, "rtn4g64", "cpu/fp32", other));
    assert_string_not_equal(base, fingerprints_drift_key(o.prints, 3, "rtn3g64", "cpu/fp32", other));
    assert_string_not_equal(base, fingerprints_drift_key(o.prints, 3, "rtn4g64", "cuda/fp32", other));
    assert_string_not_equal(base, fingerprints_drift_key(o.prints, 4, "rtn4g64", "cpu/fp32", other));
    const struct windows shorter = {ids, 3, 2, 1}; /* the same ids, cut otherwise */
    fingerprints_chain(o.prints, &shorter);
    assert_string_not_equal(base, fingerprints_drift_key(o.prints, 3, "rtn4g64", "cpu/fp32", other));
    close_prints(&o);
}

static void put_gradients_key(const char *path, struct strbuf *key) {
    struct opened o = open_prints(path);
    gradients_key(o.model, o.prints, 7, key);
    close_prints(&o);
}

/* The loss's gradients depend on what becomes of the logits, which no Linear's input tells. */
static void a_key_of_gradients_depends_on_the_logits_scaling(void **state) {
    (void)state;
    static const char granite[] = "tests/golden/models/granite", factor[] = "\"logits_scaling\": ";
    struct scratch s = scratch_open();
    struct strbuf before = STRBUF_INIT, after = STRBUF_INIT;
    size_t len;
    char *config = scratch_load("tests/golden/models/granite/config.json", &len);
    char *at = memmem(config, len, factor, strlen(factor));
    assert_non_null(at);
    at[strlen(factor)] ^= 1; /* the first digit of a number that is not 1 before or after */
    scratch_write(&s, "config.json", config, len);
    scratch_copy(&s, "tests/golden/models/granite/model.safetensors", "model.safetensors");
    put_gradients_key(granite, &before);
    put_gradients_key(s.path, &after);
    assert_string_not_equal(before.data, after.data);
    strbuf_release(&before);
    strbuf_release(&after);
    free(config);
    scratch_close(&s);
}

static void stored_hashes_spare_the_reading(void **state) {
    (void)state;
    struct opened o = open_prints(GOLDEN);
    json_t *stored = fingerprints_store(o.prints);
    struct fingerprints *again = fingerprints_new(o.model);
    fingerprints_restore(again, stored);
    assert_null(fingerprints_next(again));
    fingerprints_chain(again, &calibration);
    assert_true(same(fingerprints_input(again, 14), fingerprints_input(o.prints, 14)));
    char key[HASH_TEXT_SIZE], same_key[HASH_TEXT_SIZE];
    assert_string_equal(fingerprints_key(again, key), fingerprints_key(o.prints, same_key));
    fingerprints_free(again);

    json_object_set_new(stored, "model.norm.weight", json_string("not a hash"));
    json_object_set_new(stored, "lm_head.weight", json_integer(7));
    again = fingerprints_new(o.model);
    fingerprints_restore(again, stored);
    assert_non_null(fingerprints_next(again));
    assert_non_null(fingerprints_next(again));
    assert_null(fingerprints_next(again));
    fingerprints_free(again);
    json_decref(stored);
    close_prints(&o);
}

static void hashes_survive_their_text(void **state) {
    (void)state;
    struct hash128 hash = hash_bytes("abc", 3), again;
    char text[HASH_TEXT_SIZE];
    assert_string_equal(hash_text(&hash, text), "06b05ab6733a618578af5f94892f3950"); /* xxhsum -H2 */
    assert_true(hash_parse(text, &again) && same(&hash, &again));
    assert_false(hash_parse("06b0", &again));
    assert_false(hash_parse("06B05AB6733A618578AF5F94892F3950", &again));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flipped_byte_invalidates_exactly_what_is_downstream),
        cmocka_unit_test(keys_depend_on_candidate_backend_and_windows),
        cmocka_unit_test(a_key_of_gradients_depends_on_the_logits_scaling),
        cmocka_unit_test(stored_hashes_spare_the_reading),
        cmocka_unit_test(hashes_survive_their_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
