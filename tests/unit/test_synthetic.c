/* Generated models: the shapes of the architecture, the same bytes for the same seed, one block's memory for all. */
#include "tests/unit/cmocka_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "worker/model/describe.h"
#include "worker/model/fingerprint.h"

#define GOLDEN "tests/golden/models/"
static struct err err;

static json_t *must_read(const char *path) {
    json_t *config;
    if (json_parse_file(path, 1 << 20, &config, &err) != RC_OK) fail_msg("%s", err.message);
    return config;
}

static struct model *must_generate(const char *path, int blocks, uint64_t seed) {
    struct model *m;
    json_t *config = must_read(path);
    if (model_generate(config, blocks, seed, &m, &err) != RC_OK) fail_msg("%s: %s", path, err.message);
    json_decref(config);
    return m;
}

static float bf16_at(const struct st_tensor *t, int64_t i) {
    uint16_t half;
    memcpy(&half, (const char *)t->data + 2 * i, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Everything that the API says of a model, but its name, how it is stored and what follows from that. */
static json_t *described(const struct model *m) {
    json_t *all = model_describe(m);
    json_object_del(all, "name");
    json_object_del(all, "bytes");
    json_object_del(all, "unquantized_bytes");
    size_t i;
    json_t *linear;
    json_array_foreach(json_object_get(all, "linears"), i, linear) json_object_del(linear, "bytes");
    return all;
}

static void shapes_are_those_of_a_model_on_disk(void **state) {
    (void)state;
    static const char *const families[] = {"llama", "llama-tied", "llama-bias", "mistral",   "qwen2",
                                           "qwen3", "granite",    "phi3",       "phi4-mini", "llama-head-dim"};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        char folder[64], path[96];
        struct model *stored;
        snprintf(folder, sizeof folder, GOLDEN "%s", families[i]);
        snprintf(path, sizeof path, "%s/config.json", folder);
        assert_int_equal(model_open("m", folder, &stored, &err), RC_OK);
        struct model *generated = must_generate(path, 0, 1);
        json_t *want = described(stored), *have = described(generated);
        if (!json_equal(want, have)) fail_msg("%s differs", families[i]);
        json_decref(want);
        json_decref(have);
        model_close(generated);
        model_close(stored);
    }
}

static void values_are_bf16_of_deviation_0_02_and_norms_are_1(void **state) {
    (void)state;
    struct model *m = must_generate(GOLDEN "qwen3/config.json", 0, 1);
    const struct st_tensor *embedding = m->embedding, *norms[] = {m->final_norm, m->blocks[0].input_norm,
                                                                  m->blocks[0].post_norm, m->blocks[0].q_norm};
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < embedding->count; i++) {
        sum += bf16_at(embedding, i);
        squares += (double)bf16_at(embedding, i) * bf16_at(embedding, i);
    }
    double deviation = sqrt(squares / (double)embedding->count);
    assert_int_equal(embedding->type, DTYPE_BF16);
    assert_true(fabs(sum / (double)embedding->count) < 0.02 * 4 / sqrt((double)embedding->count));
    assert_true(deviation > 0.019 && deviation < 0.021);
    for (size_t n = 0; n < sizeof norms / sizeof *norms; n++)
        for (int64_t i = 0; i < norms[n]->count; i++)
            assert_true(bf16_at(norms[n], i) == 1);
    model_close(m);
}

static bool same_weights(const struct model *a, const struct model *b) {
    for (int64_t i = 0; i < a->linear_count; i++)
        if (memcmp(a->linears[i].weight->data, b->linears[i].weight->data, (size_t)a->linears[i].weight->bytes) != 0)
            return false;
    return true;
}

static void equal_seeds_give_equal_weights(void **state) {
    (void)state;
    static const char smollm2[] = "tests/bench/configs/smollm2-135m.json"; /* tensors of many chunks */
    struct model *a = must_generate(smollm2, 1, 7), *b = must_generate(smollm2, 1, 7),
                 *c = must_generate(smollm2, 1, 8);
    assert_true(same_weights(a, b));
    assert_false(same_weights(a, c));
    for (int64_t i = 1; i < a->linear_count; i++) /* and no two Linears are alike */
        assert_int_not_equal(memcmp(a->linears[i].weight->data, a->linears[i - 1].weight->data, 64), 0);
    char *of_a = model_identity(a), *of_c = model_identity(c);
    assert_string_not_equal(of_a, of_c);
    free(of_a);
    free(of_c);
    model_close(a);
    model_close(b);
    model_close(c);
}

static void chunks_of_a_tensor_differ(void **state) {
    (void)state;
    struct model *m = must_generate("tests/bench/configs/smollm2-135m.json", 1, 1);
    const char *bytes = m->embedding->data;
    for (int64_t at = 1 << 17; at + 64 <= m->embedding->bytes; at += 1 << 17)
        assert_int_not_equal(memcmp(bytes, bytes + at, 64), 0);
    model_close(m);
}

static void blocks_share_their_tensors(void **state) {
    (void)state;
    struct model *m = must_generate(GOLDEN "llama/config.json", 0, 1);
    assert_int_equal(m->arch.blocks, 2);
    assert_ptr_equal(m->blocks[0].input_norm, m->blocks[1].input_norm);
    for (int i = 0; i < BLOCK_LINEARS_MAX; i++) {
        const struct linear *first = &m->linears[m->blocks[0].linears[i]],
                            *second = &m->linears[m->blocks[1].linears[i]];
        assert_ptr_equal(first->weight, second->weight);
        assert_string_not_equal(first->name, second->name);
    }
    assert_ptr_not_equal(m->head, m->embedding);         /* untied: a Linear of its own, */
    assert_ptr_equal(m->head->data, m->embedding->data); /* on borrowed bytes */
    assert_false(m->arch.tied);
    model_close(m);
}

static void shared_tensors_are_hashed_once_and_keys_differ(void **state) {
    (void)state;
    int32_t ids[] = {1, 2, 3, 4};
    struct windows windows = {ids, 2, 2, 1};
    struct model *m = must_generate(GOLDEN "llama/config.json", 0, 1);
    struct fingerprints *f = fingerprints_new(m);
    int hashed = 0;
    while (fingerprints_next(f))
        hashed++;
    assert_int_equal(hashed, 2 + 7 + 3); /* norms, Linears of one block; embedding, final norm, head */
    fingerprints_chain(f, &windows);
    assert_memory_equal(fingerprints_weight(f, 0), fingerprints_weight(f, 7), sizeof(struct hash128));
    assert_memory_not_equal(fingerprints_input(f, 0), fingerprints_input(f, 7), sizeof(struct hash128));
    fingerprints_free(f);
    model_close(m);
}

static void refused(const char *text, const char *names) {
    struct model *m;
    json_t *config = json_loads(text, 0, NULL);
    assert_non_null(config);
    err = (struct err){0};
    assert_int_not_equal(model_generate(config, 3, 1, &m, &err), RC_OK);
    assert_null(m);
    if (!strstr(err.message, names)) fail_msg("\"%s\" does not name %s", err.message, names);
    json_decref(config);
}

static void what_is_not_supported_is_refused_by_name(void **state) {
    (void)state;
    refused("{\"model_type\": \"mamba\"}", "mamba");
    refused("{\"model_type\": \"llama\", \"num_local_experts\": 8}", "num_local_experts");
    refused("{\"model_type\": \"llama\", \"hidden_size\": -1}", "hidden_size");
    refused("{\"model_type\": \"llama\", \"num_hidden_layers\": 2}", "3 blocks");
    refused("[]", "config.json");
}

static void shapes_to_measure_are_supported(void **state) {
    (void)state;
    static const char *const configs[] = {"smollm2-135m", "granite-3-8b", "llama-3-70b"};
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        char path[96];
        struct arch arch;
        snprintf(path, sizeof path, "tests/bench/configs/%s.json", configs[i]);
        json_t *config = must_read(path);
        if (arch_from_config(config, &arch, &err) != RC_OK) fail_msg("%s: %s", path, err.message);
        json_decref(config);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_those_of_a_model_on_disk),
        cmocka_unit_test(values_are_bf16_of_deviation_0_02_and_norms_are_1),
        cmocka_unit_test(equal_seeds_give_equal_weights),
        cmocka_unit_test(chunks_of_a_tensor_differ),
        cmocka_unit_test(blocks_share_their_tensors),
        cmocka_unit_test(shared_tensors_are_hashed_once_and_keys_differ),
        cmocka_unit_test(shapes_to_measure_are_supported),
        cmocka_unit_test(what_is_not_supported_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
