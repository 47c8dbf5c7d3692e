/* Models on disk: their Linears in forward order, and the refusal of a config that does not fit the tensors. */
#include "tests/unit/scratch.h"

#include <jansson.h>

#include "worker/model/describe.h"
#include "worker/model/finite.h"
#include "worker/model/model.h"

#define GOLDEN "tests/golden/models/"
static struct err err;

static struct model *must_open(const char *path) {
    struct model *m;
    if (model_open("m", path, &m, &err) != RC_OK) fail_msg("%s: %s", path, err.message);
    return m;
}

static void linears_come_in_forward_order(void **state) {
    (void)state;
    static const char *const split[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    static const enum linear_input inputs[] = {INPUT_ATTENTION, INPUT_ATTENTION, INPUT_ATTENTION, INPUT_OUTPUT,
                                               INPUT_MLP,       INPUT_MLP,       INPUT_DOWN};
    struct model *m = must_open(GOLDEN "llama");
    assert_int_equal(m->linear_count, 15);
    for (int i = 0; i < 7; i++) {
        assert_string_equal(m->linears[7 + i].projection, split[i]);
        assert_int_equal(m->linears[7 + i].input, inputs[i]);
        assert_int_equal(m->linears[7 + i].block, 1);
        assert_int_equal(m->blocks[1].linears[i], 7 + i);
    }
    assert_string_equal(m->linears[8].name, "model.layers.1.self_attn.k_proj");
    assert_int_equal(m->linears[8].rows, 16);
    assert_int_equal(m->linears[8].cols, 32);
    assert_int_equal(m->linears[14].block, -1);
    assert_ptr_equal(m->linears[14].weight, m->head);
    assert_null(m->linears[0].bias);
    model_close(m);
}

static void fused_projections_are_one_linear(void **state) {
    (void)state;
    static const char *const fused[] = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"};
    struct model *m = must_open(GOLDEN "phi3");
    for (int i = 0; i < 4; i++)
        assert_string_equal(m->linears[i].projection, fused[i]);
    assert_int_equal(m->linears[0].rows, 64);
    assert_int_equal(m->linears[2].rows, 96);
    assert_int_equal(m->blocks[0].linears[4], -1);
    model_close(m);
}

static void tied_embeddings_may_have_either_name(void **state) {
    (void)state;
    static const char *const tied[] = {GOLDEN "llama-tied", GOLDEN "llama-tied-head"};
    for (int i = 0; i < 2; i++) {
        struct model *m = must_open(tied[i]);
        assert_true(m->arch.tied && m->head == m->embedding && m->linears[m->linear_count - 1].weight == m->head);
        model_close(m);
    }
}

static void parts_of_every_family_are_there(void **state) {
    (void)state;
    struct model *m = must_open(GOLDEN "qwen3");
    assert_true(m->blocks[0].q_norm != NULL && m->blocks[0].q_norm->count == 16);
    model_close(m);
    m = must_open(GOLDEN "llama-bias");
    for (int i = 0; i < 7; i++)
        assert_non_null(m->linears[i].bias);
    model_close(m);
    m = must_open(GOLDEN "qwen2");
    assert_true(m->linears[2].bias != NULL && m->linears[3].bias == NULL);
    model_close(m);
    m = must_open(GOLDEN "llama-sharded");
    assert_true(m->final_norm->type == DTYPE_F32 && m->head->type == DTYPE_BF16);
    model_close(m);
}

/* A golden with one member of its config replaced. */
static enum rc open_changed(const char *golden, const char *member, const char *json) {
    struct scratch s = scratch_open();
    char path[128];
    snprintf(path, sizeof path, GOLDEN "%s/model.safetensors", golden);
    scratch_copy(&s, path, "model.safetensors");
    snprintf(path, sizeof path, GOLDEN "%s/config.json", golden);
    json_t *config = json_load_file(path, 0, NULL);
    assert_int_equal(json_object_set_new(config, member, json_loads(json, JSON_DECODE_ANY, NULL)), 0);
    char *text = json_dumps(config, 0);
    scratch_write(&s, "config.json", text, strlen(text));
    free(text);
    json_decref(config);
    struct model *m;
    enum rc rc = model_open("changed", s.path, &m, &err);
    model_close(m);
    scratch_close(&s);
    return rc;
}

static void a_config_that_does_not_fit_says_where(void **state) {
    (void)state;
    static const struct {
        const char *golden, *member, *json;
        enum rc rc;
        const char *words[4];
    } cases[] = {
        {"llama",
         "intermediate_size",
         "40",
         RC_INVALID,
         {"mlp.gate_proj.weight", "[48, 32]", "[40, 32]", "intermediate_size"}},
        {"llama",
         "num_key_value_heads",
         "4",
         RC_INVALID,
         {"k_proj.weight", "[16, 32]", "num_key_value_heads", "head_dim"}},
        {"llama", "head_dim", "16", RC_INVALID, {"q_proj.weight", "[64, 32]", "head_dim", "model.safetensors"}},
        {"llama",
         "vocab_size",
         "100",
         RC_INVALID,
         {"model.embed_tokens.weight", "[100, 32]", "vocab_size", "[128, 32]"}},
        {"llama", "hidden_size", "64", RC_INVALID, {"input_layernorm.weight", "[32]", "[64]", "hidden_size"}},
        {"llama", "num_hidden_layers", "3", RC_INVALID, {"model.layers.2.", "missing", "'changed'", ""}},
        {"llama", "attention_bias", "true", RC_INVALID, {"q_proj.bias", "missing", "", ""}},
        {"llama-bias", "mlp_bias", "false", RC_INVALID, {"gate_proj.bias", "no bias", "", ""}},
        {"llama-tied", "tie_word_embeddings", "false", RC_INVALID, {"lm_head.weight", "missing", "", ""}},
        {"llama", "model_type", "\"qwen3\"", RC_INVALID, {"q_norm", "missing", "", ""}},
        {"llama", "hidden_act", "\"relu\"", RC_UNSUPPORTED, {"hidden_act", "relu", "", ""}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (open_changed(cases[i].golden, cases[i].member, cases[i].json) != cases[i].rc)
            fail_msg("%s %s: %s", cases[i].golden, cases[i].member, err.message);
        for (int w = 0; w < 4; w++)
            if (strstr(err.message, cases[i].words[w]) == NULL)
                fail_msg("'%s' lacks '%s'", err.message, cases[i].words[w]);
    }
    assert_int_equal(open_changed("llama", "rope_theta", "5"), RC_OK);
}

static void both_names_are_tied_only_when_equal(void **state) {
    (void)state;
    assert_int_equal(open_changed("llama", "tie_word_embeddings", "true"), RC_OK);
    struct scratch s = scratch_open();
    scratch_copy(&s, GOLDEN "llama/model.safetensors", "model.safetensors");
    static const char config[] = "{\"model_type\":\"llama\",\"vocab_size\":128,\"hidden_size\":32,"
                                 "\"intermediate_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
                                 "\"num_key_value_heads\":2,\"tie_word_embeddings\":true}";
    scratch_write(&s, "config.json", config, strlen(config));
    struct model *m = must_open(s.path);
    assert_true(!m->arch.tied && m->head != m->embedding);
    model_close(m);
    scratch_close(&s);
}

static void folders_without_a_model_are_refused(void **state) {
    (void)state;
    struct model *m;
    struct scratch s = scratch_open();
    assert_int_equal(model_open("m", "/nowhere/at/all", &m, &err), RC_NOT_FOUND);
    assert_int_equal(model_open("m", s.path, &m, &err), RC_NOT_FOUND);
    assert_non_null(strstr(err.message, "config.json"));
    scratch_write(&s, "config.json", "{\"a\":1,\"a\":2}", 13);
    assert_int_equal(model_open("m", s.path, &m, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "config.json"));
    scratch_copy(&s, GOLDEN "llama/config.json", "config.json");
    assert_int_equal(model_open("m", s.path, &m, &err), RC_NOT_FOUND);
    assert_non_null(strstr(err.message, "model.safetensors"));
    scratch_close(&s);
}

/* A download that stopped: cut anywhere, neither file opens, and the message names it. */
static void files_cut_short_are_refused_by_name(void **state) {
    (void)state;
    static const char *const files[] = {"config.json", "model.safetensors"};
    enum { CUTS = 100 };
    for (int f = 0; f < 2; f++) {
        struct scratch s = scratch_open();
        char path[128];
        size_t len;
        snprintf(path, sizeof path, GOLDEN "llama/%s", files[f]);
        scratch_copy(&s, GOLDEN "llama/config.json", files[0]);
        scratch_copy(&s, GOLDEN "llama/model.safetensors", files[1]);
        char *bytes = scratch_load(path, &len);
        while (bytes[len - 1] == '\n')
            len--; /* the end of a text file is no loss */
        for (size_t cut = 0; cut < CUTS; cut++) {
            size_t kept = cut < 16 ? cut : cut == CUTS - 1 ? len - 1 : len * cut / CUTS;
            struct model *m;
            scratch_write(&s, files[f], bytes, kept);
            enum rc rc = model_open("cut", s.path, &m, &err);
            if (rc != RC_INVALID && rc != RC_MALFORMED) fail_msg("%s of %zu bytes: %s", files[f], kept, rc_name(rc));
            if (strstr(err.message, files[f]) == NULL) fail_msg("'%s' does not name %s", err.message, files[f]);
        }
        free(bytes);
        scratch_close(&s);
    }
}

/* A golden whose final norm's last weight has this bit pattern; what is said of it. */
static const char *why_not_finite(const char *golden, uint32_t pattern) {
    struct scratch s = scratch_open();
    char path[128];
    size_t len;
    snprintf(path, sizeof path, GOLDEN "%s/config.json", golden);
    scratch_copy(&s, path, "config.json");
    snprintf(path, sizeof path, GOLDEN "%s", golden);
    struct model *m = must_open(path);
    const struct st_tensor *norm = m->final_norm;
    size_t size = dtype_size(norm->type), last = (size_t)norm->bytes - size;
    strncat(path, "/model.safetensors", sizeof path - strlen(path) - 1);
    char *bytes = scratch_load(path, &len), *at = memmem(bytes, len, norm->data, (size_t)norm->bytes);
    assert_non_null(at);
    memcpy(at + last, &pattern, size);
    scratch_write(&s, "model.safetensors", bytes, len);
    model_close(m);
    m = must_open(s.path);
    assert_int_equal(model_not_finite(m, "x is", &err), RC_INVALID);
    model_close(m);
    free(bytes);
    scratch_close(&s);
    return err.message;
}

static void weights_that_are_no_numbers_are_found(void **state) {
    (void)state;
    static const struct {
        const char *golden;
        uint32_t largest, infinite, nan;
    } types[] = {{"llama", 0xff7fffff, 0xff800000, 0x7f800001},
                 {"llama-f16", 0xfbff, 0xfc00, 0x7c01},
                 {"llama-linear", 0xff7f, 0xff80, 0x7f81}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *golden = types[i].golden;
        assert_non_null(strstr(why_not_finite(golden, types[i].largest), "x is not finite: every weight is"));
        assert_non_null(
            strstr(why_not_finite(golden, types[i].infinite), "element 31 of model.norm.weight is infinite"));
        assert_non_null(strstr(why_not_finite(golden, types[i].nan), "element 31 of model.norm.weight is NaN"));
    }
}

static int64_t number(const json_t *object, const char *key) {
    return json_integer_value(json_object_get(object, key));
}

static void descriptions_add_up(void **state) {
    (void)state;
    static const char *const models[] = {GOLDEN "llama", GOLDEN "llama-tied", GOLDEN "llama-bias", GOLDEN "phi4-mini"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct model *m = must_open(models[i]);
        json_t *d = model_describe(m), *linear;
        assert_non_null(d);
        int64_t bytes = number(json_object_get(d, "unquantized_bytes"), "total"), params = 0, all = 0, count;
        size_t index;
        json_array_foreach(json_object_get(d, "linears"), index,
                           linear) if (json_is_integer(json_object_get(linear, "block"))) bytes +=
            number(linear, "bytes");
        assert_int_equal(number(d, "bytes"), bytes);
        const struct st_tensor *tensors = safetensors_all(m->tensors, &count);
        for (int64_t t = 0; t < count; t++) {
            params += tensors[t].count;
            all += tensors[t].bytes;
        }
        assert_int_equal(number(d, "parameters"), params);
        assert_int_equal(bytes, all);
        assert_int_equal(json_array_size(json_object_get(d, "linears")), m->linear_count);
        json_decref(d);
        model_close(m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linears_come_in_forward_order),
        cmocka_unit_test(fused_projections_are_one_linear),
        cmocka_unit_test(tied_embeddings_may_have_either_name),
        cmocka_unit_test(parts_of_every_family_are_there),
        cmocka_unit_test(a_config_that_does_not_fit_says_where),
        cmocka_unit_test(both_names_are_tied_only_when_equal),
        cmocka_unit_test(folders_without_a_model_are_refused),
        cmocka_unit_test(descriptions_add_up),
        cmocka_unit_test(files_cut_short_are_refused_by_name),
        cmocka_unit_test(weights_that_are_no_numbers_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
