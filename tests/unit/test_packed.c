/* Quantized models of others are read as their library reads them, or refused by the field or tensor at fault. */
#include "tests/unit/scratch.h"

#include <jansson.h>

#include "base/json.h"
#include "base/mem.h"
#include "worker/model/packed.h"
#include "worker/model/quant_config.h"
#include "worker/model/shard.h"

static struct err err;

/* `text`: the value of quantization_config, with ' for ". */
static enum rc read_config(const char *text, struct quant_config **q) {
    json_t *config;
    char *json = xasprintf("{\"quantization_config\": %s}", text);
    for (char *c = json; *c; c++)
        if (*c == '\'') *c = '"';
    if (json_parse(json, strlen(json), &config, &err) != RC_OK) fail_msg("%s: %s", json, err.message);
    free(json);
    memset(&err, 0, sizeof err);
    enum rc rc = quant_config_read(config, q, &err);
    json_decref(config);
    return rc;
}

#define WEIGHTS "'num_bits':4,'type':'int','symmetric':true,'strategy':'group','group_size':64,'dynamic':false"
#define GROUP(targets, weights) "{'targets':[" targets "],'weights':{" weights "}}"
#define CT(groups, more)                                                                                               \
    "{'quant_method':'compressed-tensors','format':'pack-quantized','config_groups':{" groups "}" more "}"

/* "4g64", "8g0", as candidate ids; "-" for a Linear that is not quantized. */
static void check_match(struct quant_config *q, const char *linear, const char *want) {
    const struct candidate *c;
    char id[CANDIDATE_ID_SIZE] = "-";
    if (quant_config_match(q, linear, &c, &err) != RC_OK) fail_msg("%s", err.message);
    if (c) candidate_id(c, id);
    assert_string_equal(id, want);
}

static void linears_are_matched_as_the_package_does(void **state) {
    (void)state;
    struct quant_config *q;
    const char *text =
        CT("'a':" GROUP("'Linear'", WEIGHTS) ",'b':" GROUP(
               "'re:.*down_proj'",
               "'num_bits':8,'strategy':'channel'") ",'c':" GROUP("'re:.*mlp.*','model.layers.0.mlp.up_proj'",
                                                                  "'num_bits':3,'group_size':32,'symmetric':false"),
           ",'ignore':['lm_head','re:.*layers[.]7[.].*'],'quantization_status':'compressed','kv_cache_scheme':null,"
           "'sparsity_config':{},'transform_config':{},'global_compression_ratio':1.5");
    assert_int_equal(read_config(text, &q), RC_OK);
    assert_string_equal(quant_config_method(q), "compressed-tensors");
    check_match(q, "model.layers.0.self_attn.q_proj", "rtn4g64-sym");
    check_match(q, "model.layers.0.mlp.up_proj", "rtn3g32-intzero");
    check_match(q, "model.layers.0.mlp.gate_proj", "rtn3g32-intzero");
    /* Two patterns match: the first by its text. */
    check_match(q, "model.layers.0.mlp.down_proj", "rtn8g0-sym");
    check_match(q, "model.layers.7.mlp.up_proj", "-");
    check_match(q, "lm_head", "-");
    quant_config_free(q);
}

static void floats_have_a_format_of_their_own(void **state) {
    (void)state;
    struct quant_config *q;
    const char *text =
        "{'quant_method':'compressed-tensors','format':'mixed-precision','config_groups':{'a':{'targets':['x'],"
        "'format':'float-quantized','weights':{'num_bits':8,'type':'float','strategy':'channel'}},'b':{'targets':['y'],"
        "'weights':{'num_bits':8,'type':'float','strategy':'tensor','symmetric':true}}}}";
    assert_int_equal(read_config(text, &q), RC_OK);
    check_match(q, "x", "fp8");
    check_match(q, "y", "fp8-tensor");
    quant_config_free(q);
}

static void a_pattern_matches_from_the_names_start(void **state) {
    (void)state;
    struct quant_config *q;
    assert_int_equal(read_config(CT("'a':" GROUP("'re:layers.*','re:model.layers.1'", WEIGHTS), ""), &q), RC_OK);
    check_match(q, "model.layers.0.mlp.up_proj", "-");
    check_match(q, "model.layers.1.mlp.up_proj", "rtn4g64-sym");
    quant_config_free(q);
}

static void our_own_dialect_says_more(void **state) {
    (void)state;
    struct quant_config *q;
#define FLOAT "'strategy':'group','symmetric':false,'zero':'float'"
    static const char text[] = "{'quant_method':'hsaqd','config_groups':{'a':" GROUP(
        "'x'", "'num_bits':5,'group_size':80," FLOAT) ",'b':" GROUP("'y'", "'num_bits':3,'group_size':64,'layout':'hqq'"
                                                                           "," FLOAT) "}}";
#undef FLOAT
    assert_int_equal(read_config(text, &q), RC_OK);
    check_match(q, "x", "rtn5g80");
    check_match(q, "y", "rtn3g64-hqqpack");
    quant_config_free(q);
}

static void no_config_is_no_quantization(void **state) {
    (void)state;
    struct quant_config *q = (void *)1;
    assert_int_equal(read_config("null", &q), RC_OK);
    assert_null(q);
}

static void what_is_not_implemented_is_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *text;
        enum rc rc;
        const char *says;
    } cases[] = {
        {"[]", RC_INVALID, "must be an object"},
        {"{}", RC_INVALID, "quant_method"},
        {"{'quant_method':'gptq'}", RC_UNSUPPORTED, "\"gptq\""},
        {"{'quant_method':3}", RC_INVALID, "quant_method"},
        {"{'quant_method':'compressed-tensors'}", RC_INVALID, "config_groups"},
        {"{'quant_method':'compressed-tensors','config_groups':[]}", RC_INVALID, "config_groups"},
        {CT("'a':['Linear']", ""), RC_UNSUPPORTED, "config_groups/a must be an object"},
        {CT("'a':{}", ""), RC_INVALID, "config_groups/a/weights"},
        {CT("'a':{'weights':{" WEIGHTS "}}", ""), RC_INVALID, "config_groups/a/targets"},
        {CT("'a':{'weights':{" WEIGHTS "},'targets':[3]}", ""), RC_INVALID, "must hold strings"},
        {CT("'a':{'weights':{" WEIGHTS "},'targets':['re:(']}", ""), RC_INVALID, "character 1"},
        {CT("'a':{'weights':{" WEIGHTS "},'targets':[],'format':'float-quantized'}", ""), RC_UNSUPPORTED,
         "float-quantized"},
        {CT("'a':{'weights':{" WEIGHTS "},'targets':[],'input_activations':{'num_bits':8}}", ""), RC_UNSUPPORTED,
         "config_groups/a/input_activations"},
        {CT("'a':{'weights':{" WEIGHTS "},'targets':[],'output_activations':{'num_bits':8}}", ""), RC_UNSUPPORTED,
         "output_activations"},
        {CT("'a':" GROUP("", "'num_bits':8,'type':'odd','strategy':'channel'"), ""), RC_UNSUPPORTED, "type is \"odd\""},
        {CT("'a':" GROUP("", "'num_bits':4,'type':'float','strategy':'channel'"), ""), RC_UNSUPPORTED, "of floats"},
        {CT("'a':" GROUP("", "'num_bits':8,'type':'float','strategy':'block'"), ""), RC_UNSUPPORTED, "block"},
        {CT("'a':{'weights':{'type':'float'},'targets':[],'format':'pack-quantized'}", ""), RC_UNSUPPORTED,
         "pack-quantized"},
        {CT("'a':" GROUP("", "'num_bits':4,'strategy':'tensor'"), ""), RC_UNSUPPORTED, "strategy is \"tensor\""},
        {CT("'a':" GROUP("", "'num_bits':4"), ""), RC_UNSUPPORTED, "strategy is \"tensor\""},
        {CT("'a':" GROUP("", "'num_bits':4,'strategy':'block','block_structure':[128,128]"), ""), RC_UNSUPPORTED,
         "block"},
        {CT("'a':" GROUP("", "'num_bits':4,'strategy':'group'"), ""), RC_INVALID, "group_size 0"},
        {CT("'a':" GROUP("", "'num_bits':4,'strategy':'channel','group_size':64"), ""), RC_INVALID, "group_size 64"},
        {CT("'a':" GROUP("", "'num_bits':4,'strategy':'group','group_size':8"), ""), RC_UNSUPPORTED, "groups of 8"},
        {CT("'a':" GROUP("", "'num_bits':7,'group_size':64"), ""), RC_UNSUPPORTED, "7 bits"},
        {CT("'a':" GROUP("", "'num_bits':0,'group_size':64"), ""), RC_INVALID, "num_bits"},
        {CT("'a':" GROUP("", "'num_bits':'4','group_size':64"), ""), RC_INVALID, "num_bits"},
        {CT("'a':" GROUP("", "'group_size':64"), ""), RC_UNSUPPORTED, "0 bits"},
        {CT("'a':" GROUP("", "'num_bits':4,'group_size':9999999999"), ""), RC_INVALID, "group_size"},
        {CT("'a':" GROUP("", "'num_bits':4,'group_size':64,'symmetric':1"), ""), RC_INVALID, "symmetric"},
        {CT("'a':" GROUP("", "'num_bits':4,'group_size':64,'dynamic':true"), ""), RC_UNSUPPORTED, "dynamic"},
        {CT("'a':" GROUP("", "'num_bits':4,'group_size':64,'dynamic':'local'"), ""), RC_UNSUPPORTED, "dynamic"},
        {CT("'a':" GROUP("", "'num_bits':4,'group_size':64,'actorder':'odd'"), ""), RC_UNSUPPORTED, "actorder"},
        {CT("", ",'kv_cache_scheme':{'num_bits':8}"), RC_UNSUPPORTED, "kv_cache_scheme"},
        {CT("", ",'sparsity_config':{'format':'sparse-24-bitmask'}"), RC_UNSUPPORTED, "sparsity_config"},
        {CT("", ",'transform_config':{'config_groups':{}}"), RC_UNSUPPORTED, "transform_config"},
        {CT("", ",'quantization_status':'initialized'"), RC_UNSUPPORTED, "initialized"},
        {CT("", ",'ignore':{}"), RC_INVALID, "ignore must be an array"},
        {"{'quant_method':'compressed-tensors','format':'nvfp4-pack-quantized','config_groups':{}}", RC_UNSUPPORTED,
         "nvfp4"},
        {"{'quant_method':'hsaqd','config_groups':{'a':" GROUP("", "'num_bits':4,'group_size':64,'layout':'rows'") "}}",
         RC_UNSUPPORTED, "layout"},
        {"{'quant_method':'hsaqd','config_groups':{'a':" GROUP("", WEIGHTS ",'layout':'hqq'") "}}", RC_UNSUPPORTED,
         "hqq layout"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct quant_config *q;
        enum rc rc = read_config(cases[i].text, &q);
        if (rc != cases[i].rc || !strstr(err.message, cases[i].says))
            fail_msg("%s: %s: %s", cases[i].text, rc_name(rc), err.message);
        assert_null(q);
    }
}

static void a_pattern_cannot_hold_us_up(void **state) {
    (void)state;
    struct quant_config *q;
    const struct candidate *c;
    const char *text = CT("'a':" GROUP("'re:(([a-z0-9._]+)+)+[!?]'", WEIGHTS), "");
    assert_int_equal(read_config(text, &q), RC_OK);
    assert_int_equal(quant_config_match(q, "model.layers.0.self_attn.q_proj", &c, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "too long to match"));
    quant_config_free(q);
}

/* --- tensors --- */

enum { N = 6, K = 96, GROUP = 32, GROUPS = 3 };
static const struct candidate four = {.method = METHOD_RTN, .bits = 4, .group = GROUP, .zero = ZERO_INTEGER};

static int64_t found_bytes; /* of the Linear, while its file was open */

/* A file of one asymmetric 4-bit Linear, "l", of which a test changes one tensor (or leaves it out: type NULL). */
static enum rc find_changed(const char *name, struct out_tensor changed, struct packed_linear **out) {
    static const char zeros[8 * K]; /* as many as any asks for */
    static int64_t shape[2] = {N, K};
    const struct {
        const char *name;
        struct out_tensor t;
    } all[] = {
        {"l.weight_packed", {.type = "I32", .dims = 2, .shape = {N, K * 4 / 32}, .bytes = N * K / 2}},
        {"l.weight_scale", {.type = "F16", .dims = 2, .shape = {N, GROUPS}, .bytes = 2 * N * GROUPS}},
        {"l.weight_zero_point", {.type = "I32", .dims = 2, .shape = {1, GROUPS}, .bytes = 4 * GROUPS}},
        {"l.weight_shape", {.type = "I64", .dims = 1, .shape = {2}, .bytes = 16, .data = shape}},
        {"l.weight_g_idx", {.type = NULL}},
    };
    struct scratch s = scratch_open();
    struct out_shard shard = {0};
    struct safetensors *st;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct out_tensor t = name && strcmp(all[i].name + 2, name) == 0 ? changed : all[i].t;
        if (!t.data) t.data = zeros;
        if (t.type) shard_add(&shard, all[i].name, t);
    }
    assert_int_equal(shard_write(&shard, s.fd, "model.safetensors", &err), RC_OK);
    if (safetensors_open(s.fd, &st, &err) != RC_OK) fail_msg("%s", err.message);
    enum rc rc = packed_linear_find(st, "l", &four, N, K, out, &err);
    if (rc != RC_OK) assert_null(*out);
    found_bytes = rc == RC_OK ? packed_linear_bytes(*out) : 0;
    safetensors_close(st);
    shard_release(&shard);
    scratch_close(&s);
    return rc;
}

static void tensors_that_do_not_fit_are_refused_by_name(void **state) {
    (void)state;
    static const int64_t other[2] = {K, N};
    static const struct {
        const char *name;
        struct out_tensor t;
        enum rc rc;
        const char *says;
    } cases[] = {
        {"weight_packed", {.type = NULL}, RC_INVALID, "'l.weight_packed' is missing"},
        {"weight_packed",
         {.type = "F32", .dims = 2, .shape = {N, 12}, .bytes = N * 48},
         RC_UNSUPPORTED,
         "stored as F32"},
        {"weight_packed", {.type = "I32", .dims = 2, .shape = {N, 13}, .bytes = N * 52}, RC_INVALID, "[6, 13]"},
        {"weight_packed", {.type = "I32", .dims = 2, .shape = {12, N}, .bytes = N * 48}, RC_INVALID, "[12, 6]"},
        {"weight_packed", {.type = "I32", .dims = 1, .shape = {N * 12}, .bytes = N * 48}, RC_INVALID, "[72]"},
        {"weight_scale", {.type = NULL}, RC_INVALID, "'l.weight_scale' is missing"},
        {"weight_scale", {.type = "I32", .dims = 2, .shape = {N, 3}, .bytes = N * 12}, RC_UNSUPPORTED, "stored as I32"},
        {"weight_scale", {.type = "BF16", .dims = 2, .shape = {N, 2}, .bytes = N * 4}, RC_INVALID, "[6, 2]"},
        {"weight_scale", {.type = "F16", .dims = 1, .shape = {N}, .bytes = N * 2}, RC_INVALID, "[6]"},
        {"weight_zero_point", {.type = NULL}, RC_INVALID, "'l.weight_zero_point' is missing"},
        {"weight_zero_point",
         {.type = "I8", .dims = 2, .shape = {N, 3}, .bytes = N * 3},
         RC_UNSUPPORTED,
         "stored as I8"},
        {"weight_zero_point", {.type = "I32", .dims = 2, .shape = {N, 3}, .bytes = N * 12}, RC_INVALID, "[6, 3]"},
        {"weight_shape", {.type = "I32", .dims = 1, .shape = {2}, .bytes = 8}, RC_UNSUPPORTED, "stored as I32"},
        {"weight_shape", {.type = "I64", .dims = 1, .shape = {3}, .bytes = 24}, RC_INVALID, "no two sizes"},
        {"weight_shape",
         {.type = "I64", .dims = 1, .shape = {2}, .bytes = 16, .data = other},
         RC_INVALID,
         "says [96, 6]"},
        {"weight_g_idx", {.type = "I32", .dims = 1, .shape = {K - 1}, .bytes = 4 * K - 4}, RC_INVALID, "95 entries"},
        {"weight_g_idx", {.type = "I64", .dims = 1, .shape = {K}, .bytes = 8 * K}, RC_UNSUPPORTED, "stored as I64"},
        {"weight_g_idx", {.type = "I32", .dims = 1, .shape = {K}, .bytes = 4 * K}, RC_INVALID, "every group"},
    };
    struct packed_linear *p;
    assert_int_equal(find_changed(NULL, (struct out_tensor){0}, &p), RC_OK);
    assert_true(p->order == NULL && found_bytes == N * K / 2 + 2 * N * GROUPS + 4 * GROUPS);
    free(p);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum rc rc = find_changed(cases[i].name, cases[i].t, &p);
        if (rc != cases[i].rc || !strstr(err.message, cases[i].says) || !strstr(err.message, "l.weight_"))
            fail_msg("%s %zu: %s: %s", cases[i].name, i, rc_name(rc), err.message);
    }
}

static enum rc find_ordered(int32_t *order, struct packed_linear **p) {
    struct out_tensor t = {.type = "I32", .dims = 1, .shape = {K}, .bytes = 4 * K, .data = order};
    return find_changed("weight_g_idx", t, p);
}

static void columns_out_of_order_stay_within_their_groups(void **state) {
    (void)state;
    struct packed_linear *p;
    int32_t order[K];
    for (int k = 0; k < K; k++)
        order[k] = k % GROUPS;
    assert_int_equal(find_ordered(order, &p), RC_OK);
    assert_non_null(p->order);
    free(p);
    order[1] = 0; /* 33, 31 and 32 of them */
    assert_int_equal(find_ordered(order, &p), RC_INVALID);
    assert_non_null(strstr(err.message, "every group"));
    static const int32_t beyond[] = {GROUPS, -2, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        order[5] = beyond[i];
        assert_int_equal(find_ordered(order, &p), RC_INVALID);
        assert_non_null(strstr(err.message, "column 5"));
    }
    order[5] = -1; /* never filled in */
    assert_int_equal(find_ordered(order, &p), RC_OK);
    assert_null(p->order);
    free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linears_are_matched_as_the_package_does),
        cmocka_unit_test(floats_have_a_format_of_their_own),
        cmocka_unit_test(a_pattern_matches_from_the_names_start),
        cmocka_unit_test(our_own_dialect_says_more),
        cmocka_unit_test(no_config_is_no_quantization),
        cmocka_unit_test(what_is_not_implemented_is_refused_by_name),
        cmocka_unit_test(a_pattern_cannot_hold_us_up),
        cmocka_unit_test(tensors_that_do_not_fit_are_refused_by_name),
        cmocka_unit_test(columns_out_of_order_stay_within_their_groups),
    };
    return cmocka_run_group_tests_name("packed", tests, NULL, NULL);
}
