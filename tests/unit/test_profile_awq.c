/* A profile's rows of AWQ: whom its scale depends on, and where there is none. */
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#define CALIBRATION FIXTURE "calibration.txt"
#define SPEC(candidates, more)                                                                                         \
    "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':3,'length':64,'sampling':'sequential'},"     \
    "'candidates':[" candidates "]" more "}"

static bool is_cached(const json_t *data) {
    return json_is_true(json_object_get(data, "cached"));
}

static void flip_a_bit(uint16_t *w, int64_t rows, int64_t cols) {
    w[rows * cols / 2] ^= 1;
}

/* AWQ's scale is made for all the Linears that read an input: a change of one is a change of all, RTN's rows apart. */
static void awq_rows_depend_on_their_siblings(void **state) {
    (void)state;
    static const char spec[] = SPEC("{'method':'awq','bits':4,'group':64},{'method':'rtn','bits':4,'group':64}",
                                    ",'layers':'layers\\\\.2\\\\.self_attn\\\\.[qkv]'");
    struct scratch model = tiny_copy();
    struct run before, after;
    run_init(&before);
    run_init(&after);
    must_run(&before, CALIBRATION, spec, NULL);
    tiny_edit(&model, "model.layers.2.self_attn.k_proj.weight", flip_a_bit);
    json_object_update(after.cache, before.cache);
    assert_int_equal(run_job(&after, model.path, CALIBRATION, spec, NULL, NULL), RC_OK);
    static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.2.self_attn.%s", names[i]);
        assert_false(is_cached(row_of(&after, name, "awq4g64")));
        assert_true(is_cached(row_of(&after, name, "rtn4g64")) == (i != 1));
    }
    run_release(&before);
    run_release(&after);
    scratch_close(&model);
}

static bool is_scaled(const struct run *r, const char *linear) {
    const json_t *gain = json_object_get(row_of(r, linear, "awq4g64"), "awq_gain");
    assert_true(json_is_null(gain) || json_is_real(gain));
    return json_is_real(gain);
}

static void profile_quantized(struct run *r, const char *path, const char *spec) {
    if (run_job(r, path, CALIBRATION, spec, NULL, NULL) != RC_OK) fail_msg("%s", r->err.message);
}

/* Of a model that is quantized already, v stays packed where it is not profiled: as in a recipe, o has no scale then,
 * nor have those that read an input beside it. The cache tells one from the other. */
static void what_stays_packed_takes_no_scale(void **state) {
    (void)state;
    static const char *const specs[] = {
        SPEC("{'method':'awq','bits':4,'group':64}", ",'layers':'1\\\\.self_attn.[qko]_'"),
        SPEC("{'method':'awq','bits':4,'group':64}", ",'layers':'1\\\\.self_attn'")};
    struct scratch folder = scratch_open();
    char path[96];
    struct run made, run[2];
    snprintf(path, sizeof path, "%s/made", folder.path);
    run_init(&made);
    made.artifact = path;
    must_run(&made, CALIBRATION,
             "{'kind':'quantize','model':'M','name':'made','uniform':{'method':'rtn','bits':8,'group':64}}", NULL);
    for (int i = 0; i < 2; i++) {
        run_init(&run[i]);
        if (i > 0) json_object_update(run[i].cache, run[0].cache);
        profile_quantized(&run[i], path, specs[i]);
        assert_true(is_scaled(&run[i], "model.layers.1.self_attn.o_proj") == i);
        assert_true(is_scaled(&run[i], "model.layers.1.self_attn.k_proj") == i);
        assert_false(is_cached(row_of(&run[i], "model.layers.1.self_attn.q_proj", "awq4g64")));
    }
    run_release(&made);
    run_release(&run[0]);
    run_release(&run[1]);
    scratch_close(&folder);
}

/* lm_head's input comes from the embeddings' own rows where they are tied; 16 bits elsewhere take any scale. */
static void only_what_can_be_folded_is_scaled(void **state) {
    (void)state;
    struct run r, again;
    run_init(&r);
    run_init(&again);
    static const char spec[] =
        SPEC("{'method':'awq','bits':4,'group':64}", ",'layers':'5\\\\.self_attn.o_proj|lm_head','head':true");
    must_run(&r, CALIBRATION, spec, NULL);
    json_object_update(again.cache, r.cache);
    must_run(&again, CALIBRATION, spec, NULL);
    for (int i = 0; i < 2; i++) {
        assert_true(is_scaled(i ? &again : &r, "model.layers.5.self_attn.o_proj"));
        assert_false(is_scaled(i ? &again : &r, "lm_head"));
    }
    assert_true(is_cached(row_of(&again, "lm_head", "awq4g64")));
    run_release(&r);
    run_release(&again);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(awq_rows_depend_on_their_siblings),
        cmocka_unit_test(what_stays_packed_takes_no_scale),
        cmocka_unit_test(only_what_can_be_folded_is_scaled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
