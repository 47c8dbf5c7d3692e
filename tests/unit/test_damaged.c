/* A weight that is no number is named: by whatever calibrates on what flows through the model, so that no candidate is
 * chosen by what comes of it; and by an eval, whichever of its models has it. */
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#define HELDOUT FIXTURE "heldout.txt"
#define CALIBRATION ",'calibration':{'dataset':'C','samples':2,'length':32}"
#define QUANTIZE(candidate, more)                                                                                      \
    "{'kind':'quantize','model':'M','name':'made','uniform':" candidate CALIBRATION more "}"
#define PROFILE(candidate)                                                                                             \
    "{'kind':'profile','model':'M','scores':['error'],'candidates':[" candidate "]" CALIBRATION "}"

static void damage(uint16_t *w, int64_t rows, int64_t cols) {
    for (int64_t n = 0; n < rows; n++)
        w[n * cols + cols - 1] = 0x7fc0;
}

static void expect_named(const char *tensor, const char *spec) {
    struct scratch model = tiny_copy(), folder = scratch_open();
    char artifact[96], named[128];
    struct run run;
    snprintf(artifact, sizeof artifact, "%s/made", folder.path);
    snprintf(named, sizeof named, "of %s is NaN: the file is damaged", tensor);
    run_init(&run);
    run.artifact = artifact;
    tiny_edit(&model, tensor, damage);
    assert_int_equal(run_job(&run, model.path, HELDOUT, spec, NULL, NULL), RC_INVALID);
    if (!strstr(run.err.message, named)) fail_msg("%s: %s", spec, run.err.message);
    run_release(&run);
    scratch_close(&folder);
    scratch_close(&model);
}

static void what_looks_at_h_names_the_weight(void **state) {
    (void)state;
    static const char *const specs[] = {
        QUANTIZE("{'method':'awq','bits':3}", ""),
        QUANTIZE("{'method':'rtn','bits':3,'range':'weighted'}", ""),
        QUANTIZE("{'method':'hqq','bits':3,'range':'output'}", ""),
        QUANTIZE("{'method':'gptq','bits':3}", ""),
        QUANTIZE("{'method':'gptq','bits':3,'sequential':false}", ""),
        PROFILE("{'method':'awq','bits':3}"),
        PROFILE("{'bits':3}"),
    };
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        expect_named("model.embed_tokens.weight", specs[i]);
        expect_named("model.layers.2.input_layernorm.weight", specs[i]);
    }
}

/* Of the final norm only gradients know. */
static void what_looks_at_gradients_names_the_weight(void **state) {
    (void)state;
    expect_named("model.norm.weight", QUANTIZE("{'method':'awq','bits':3,'guided':true}", ",'refine':false"));
    expect_named("model.norm.weight", QUANTIZE("{'bits':3}", ""));
    expect_named("model.norm.weight", PROFILE("{'bits':3}"));
}

static void refining_names_the_weight(void **state) {
    (void)state;
    expect_named("model.norm.weight", QUANTIZE("{'method':'rtn','bits':3}", ",'refine':true"));
}

/* An artifact's, beside a reference that is sound. */
static void an_eval_names_an_artifacts_damage(void **state) {
    (void)state;
    static const char shard[] = "made/model-00002-of-00007.safetensors";
    static const char tensor[] = "model.layers.1.mlp.down_proj.weight_scale";
    static const uint16_t nan = 0x7e00;
    struct scratch folder = scratch_open();
    char artifact[96];
    struct run run;
    snprintf(artifact, sizeof artifact, "%s/made", folder.path);
    run_init(&run);
    run.artifact = artifact;
    must_run(&run, HELDOUT, "{'kind':'quantize','model':'M','name':'made','uniform':{'method':'rtn','bits':4}}", NULL);
    int fd = openat(folder.fd, shard, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &nan, sizeof nan, tiny_find(fd, tensor).offset), sizeof nan);
    close(fd);
    const char *spec = "{'kind':'eval','model':'M','dataset':'D','length':64,'windows':1,'artifact':'made'}";
    assert_int_equal(run_job(&run, FIXTURE "tiny", HELDOUT, spec, NULL, NULL), RC_INVALID);
    assert_non_null(strstr(run.err.message, "the quantized model's logits are not finite: in model-00002-of-00007"));
    assert_non_null(strstr(run.err.message, "element 0 of model.layers.1.mlp.down_proj.weight_scale is NaN"));
    run_release(&run);
    scratch_close(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_looks_at_h_names_the_weight),
        cmocka_unit_test(what_looks_at_gradients_names_the_weight),
        cmocka_unit_test(refining_names_the_weight),
        cmocka_unit_test(an_eval_names_an_artifacts_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
