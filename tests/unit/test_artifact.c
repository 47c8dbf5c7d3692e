/* An artifact is worth what its codes are, bit for bit, and is a model like any other. */
#include "tests/unit/run_job.h"

#include "tests/unit/artifact_fixture.h"
#include "worker/model/describe.h"
#include "worker/model/fingerprint.h"
#include "worker/pipeline/block.h"
#include "worker/pipeline/upload.h"

/* --- what it is worth --- */

/* A Linear's weights as the pipelines load them from the artifact, and as its codes in memory are dequantized. */
static void check_linear(struct fixture *f, const struct job *job, const struct model *made, int64_t index) {
    const struct linear *l = &made->linears[index];
    struct quantized q;
    struct mat loaded;
    float *want = xcalloc((size_t)(l->rows * l->cols), sizeof *want);
    must(upload_linear(job, l, &loaded, &err));
    if (f->candidates[index].method == METHOD_NONE) {
        const struct st_tensor *source = f->model->linears[index].weight;
        must(backend_cpu.upload(job->device, source->data, source->type, source->count, want, &err));
    } else {
        struct dequantize_args a = {.q = &q, .out = matf(want, l->rows, l->cols)};
        must(quantized_alloc(&backend_cpu, job->device, l->rows, l->cols, &f->candidates[index], &q, &err));
        must(maker_quantize(&f->m, index, &q, &err));
        must(backend_cpu.dequantize(job->device, &a, &err));
        quantized_release(&backend_cpu, job->device, &q);
    }
    if (memcmp(loaded.data, want, (size_t)(l->rows * l->cols) * sizeof *want) != 0) fail_msg("%s differs", l->name);
    backend_cpu.free(job->device, loaded.data);
    free(want);
}

static void check_block(const struct job *job, const struct model *made, int index) {
    struct block b;
    const struct linear *l;
    must(block_open(job, made, made->arch.blocks - 1, &b, &err));
    must(block_load(&b, index, &err));
    must(backend_cpu.loaded(job->device, &err));
    for (int position = 0; (l = block_linear(made, index, position)); position++) {
        struct mat alone;
        must(upload_linear(job, l, &alone, &err));
        assert_memory_equal(b.weights.linear[position].data, alone.data, (size_t)(l->rows * l->cols) * sizeof(float));
        backend_cpu.free(job->device, alone.data);
    }
    block_close(&b);
}

/* What a budget counts is what lies in the file. */
static void check_bytes(const struct fixture *f, const struct linear *l, int64_t index) {
    struct packed sizes = packed_sizes(&f->candidates[index], l->rows, l->cols);
    int64_t bytes = l->packed ? packed_linear_bytes(l->packed) : l->weight->bytes;
    if (f->candidates[index].method == METHOD_NONE) return;
    if (bytes != packed_bytes(&sizes)) fail_msg("%s has %lld bytes", l->name, (long long)bytes);
}

static void check_values(struct fixture *f) {
    struct job job = {.id = "test", .backend = &backend_cpu, .device = f->m.device, .scratch = "/tmp"};
    struct model *made;
    must(model_open("made", f->path, &made, &err));
    assert_int_equal(made->linear_count, f->model->linear_count);
    /* Also by way of the host's memory, as a device with its own gets them. */
    struct backend apart = backend_cpu;
    for (int own_memory = 0; own_memory < 2; own_memory++) {
        apart.own_memory = own_memory;
        job.backend = &apart;
        for (int64_t i = 0; i < made->linear_count; i++)
            check_linear(f, &job, made, i);
        for (int64_t i = 0; i < made->linear_count; i++)
            check_bytes(f, &made->linears[i], i);
        for (int block = 0; block < made->arch.blocks; block++)
            check_block(&job, made, block);
    }
    model_close(made);
}

static void every_form_reads_back_to_the_last_bit(void **state) {
    (void)state;
    static const char *const models[] = {TINY, "tests/golden/models/phi3", "tests/golden/models/qwen2",
                                         "tests/golden/models/llama-f16", "tests/golden/models/llama-tied-head"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct fixture f;
        fixture_open(&f, models[i], TARGET_NONE, ours, MIXED, NULL);
        write_all(&f);
        check_values(&f);
        fixture_close(&f);
    }
    struct fixture f;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, "none");
    write_all(&f);
    check_values(&f);
    fixture_close(&f);
}

/* Its windows; the caller frees. */
static json_t *eval_rows(const char *model, const char *spec) {
    struct run r;
    run_init(&r);
    if (run_job(&r, model, FIXTURE "heldout.txt", spec, NULL, NULL) != RC_OK) fail_msg("artifact", r.err.message);
    json_t *windows = json_array(), *row;
    size_t i;
    json_array_foreach(r.rows, i, row) if (!strcmp(json_string_value(json_object_get(row, "phase")), "window"))
        json_array_append(windows, json_object_get(row, "data"));
    run_release(&r);
    return windows;
}

#define EVAL "'kind':'eval','model':'M','dataset':'D','length':128,'windows':3"

static void fp8_and_columns_out_of_order_read_back_too(void **state) {
    (void)state;
    static const char *const ids[] = {"fp8",  "gptq4g64-actorder",     "fp8-tensor", "rtn3g64-sym",
                                      "none", "gptq3g32-sym-actorder", "gptq4g16"};
    static const char *const carried[] = {"fp8", "rtn4g64-sym", "fp8-tensor", "none"};
    struct fixture f;
    fixture_open(&f, TINY, TARGET_NONE, ids, 7, "fp8");
    write_all(&f);
    check_values(&f);
    fixture_close(&f);
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, carried, 4, "fp8-tensor");
    write_all(&f);
    check_values(&f);
    fixture_close(&f);
}

static void an_eval_of_it_is_the_eval_of_its_codes(void **state) {
    (void)state;
    static const char *const ids[] = {"rtn3g64-sym"};
    struct fixture f;
    fixture_open(&f, TINY, TARGET_VLLM, ids, 1, "none");
    write_all(&f);
    json_t *made = eval_rows(f.path, "{" EVAL "}");
    json_t *codes = eval_rows(TINY, "{" EVAL ",'uniform':{'method':'rtn','bits':3,'group':64,'symmetric':true}}");
    assert_int_equal(json_array_size(made), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *a = json_array_get(made, i), *b = json_array_get(codes, i);
        double got = json_number_value(json_object_get(a, "nll_reference"));
        assert_true(got > 0 && got == json_number_value(json_object_get(b, "nll_quantized")));
        assert_true(got != json_number_value(json_object_get(b, "nll_reference")));
    }
    json_decref(made);
    json_decref(codes);
    fixture_close(&f);
}

/* And of a recipe on top of it: its Linears are the reference. */
static void a_recipe_is_evaluated_on_it(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, TINY, TARGET_NONE, ours, MIXED, "none");
    write_all(&f);
    json_t *windows = eval_rows(f.path, "{" EVAL ",'uniform':{'method':'rtn','bits':8,'group':16}}");
    for (size_t i = 0; i < 3; i++) {
        const json_t *w = json_array_get(windows, i);
        double before = json_number_value(json_object_get(w, "nll_reference"));
        double after = json_number_value(json_object_get(w, "nll_quantized"));
        assert_true(before > 0 && before != after && after < 1.01 * before && before < 1.01 * after);
    }
    json_decref(windows);
    fixture_close(&f);
}

/* A quantized model can be profiled as well: its Linears, the head among them, are what they are. */
static void it_is_profiled_like_any_model(void **state) {
    (void)state;
    struct fixture f;
    struct run r;
    fixture_open(&f, TINY, TARGET_NONE, ours, MIXED, "hqq4g64");
    write_all(&f);
    run_init(&r);
    if (run_job(&r, f.path, FIXTURE "calibration.txt",
                "{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':2,'length':32},'head':true,"
                "'candidates':[{'method':'rtn','bits':4,'group':64}]}",
                NULL, NULL) != RC_OK)
        fail_msg("artifact", r.err.message);
    assert_non_null(row_of(&r, "lm_head", "rtn4g64"));
    /* What is on its grid already stays there. */
    const json_t *same = row_of(&r, f.model->linears[0].name, "rtn4g64"), *other = row_of(&r, "lm_head", "rtn4g64");
    assert_true(json_number_value(json_object_get(same, "drift")) <
                json_number_value(json_object_get(other, "drift")) / 10);
    run_release(&r);
    fixture_close(&f);
}

/* --- as a model --- */

/* Others say "Linear" and mean no head that is the embedding, whether they ignore it by name or not. */
static void a_head_that_is_the_embedding_is_not_looked_for(void **state) {
    (void)state;
    static const char *const ids[] = {"rtn4g64-sym"};
    struct fixture f;
    struct model *made;
    char file[192];
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, ids, 1, "none");
    write_all(&f);
    snprintf(file, sizeof file, "%s/config.json", f.path);
    json_t *config = json_load_file(file, 0, NULL), *quantization = json_object_get(config, "quantization_config");
    json_t *group = json_object_get(json_object_get(quantization, "config_groups"), "group_0");
    json_object_set_new(quantization, "ignore", json_array());
    json_object_set_new(group, "targets", json_pack("[s]", "Linear"));
    assert_int_equal(json_dump_file(config, file, 0), 0);
    json_decref(config);
    must(model_open("made", f.path, &made, &err));
    assert_true(made->arch.tied && made->head == made->embedding && !made->linears[42].packed);
    assert_non_null(made->linears[41].packed);
    model_close(made);
    fixture_close(&f);
}

static void hash_model(const char *path, struct hash128 *weights, int64_t count) {
    static int32_t ids[4];
    struct windows windows = {.ids = ids, .count = 1, .length = 4};
    struct model *m;
    must(model_open("made", path, &m, &err));
    assert_int_equal(m->linear_count, count);
    struct fingerprints *f = fingerprints_new(m);
    while (fingerprints_next(f))
        continue;
    fingerprints_chain(f, &windows);
    for (int64_t i = 0; i < count; i++)
        weights[i] = *fingerprints_weight(f, i);
    fingerprints_free(f);
    model_close(m);
}

/* Sets two bytes of a tensor of the artifact. */
static void spoil(const struct fixture *f, const char *tensor, uint16_t value) {
    struct model *m;
    char file[192];
    must(model_open("made", f->path, &m, &err));
    const struct st_tensor *t = safetensors_find(m->tensors, tensor);
    assert_non_null(t);
    snprintf(file, sizeof file, "%s/%s", f->path, t->file);
    size_t len;
    char *bytes = scratch_load(file, &len);
    off_t at = (char *)memmem(bytes, len, t->data, (size_t)t->bytes) - bytes;
    free(bytes);
    model_close(m);
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, &value, sizeof value, at), sizeof value);
    close(fd);
}

static void a_packed_byte_changes_its_linears_fingerprint_alone(void **state) {
    (void)state;
    struct fixture f;
    struct hash128 before[43], after[43];
    fixture_open(&f, TINY, TARGET_NONE, ours, MIXED, NULL);
    write_all(&f);
    hash_model(f.path, before, 43);
    static const char *const changed[] = {"mlp.up_proj.weight_packed", "self_attn.q_proj.weight_scale",
                                          "mlp.gate_proj.weight_zero_point", "mlp.down_proj.weight_zero"};
    static const int linear[] = {5, 0, 4, 6};
    for (int i = 0; i < 4; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.0.%s", changed[i]);
        spoil(&f, name, 0x2345);
        hash_model(f.path, after, 43);
        for (int l = 0; l < 43; l++)
            if ((memcmp(&before[l], &after[l], sizeof *before) != 0) != (l == linear[i]))
                fail_msg("after %s the weights of Linear %d have %s fingerprint", changed[i], l,
                         l == linear[i] ? "the same" : "another");
        memcpy(before, after, sizeof before);
    }
    fixture_close(&f);
}

static void it_is_described_with_what_it_takes(void **state) {
    (void)state;
    struct fixture f;
    struct model *made;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, "none");
    write_all(&f);
    must(model_open("made", f.path, &made, &err));
    json_t *d = model_describe(made), *source = model_describe(f.model);
    const json_t *linears = json_object_get(d, "linears"), *first = json_array_get(linears, 0);
    assert_string_equal(json_string_value(json_object_get(d, "quantization")), "compressed-tensors");
    assert_true(json_is_null(json_object_get(source, "quantization")));
    assert_int_equal(json_integer_value(json_object_get(first, "bytes")), 128 * 128 / 2 + 128 * 2 * 2);
    const json_t *packed = json_object_get(first, "packed");
    assert_int_equal(json_integer_value(json_object_get(packed, "bits")), 4);
    assert_true(json_is_true(json_object_get(packed, "symmetric")));
    assert_true(json_is_null(json_object_get(json_array_get(linears, 2), "packed")));
    assert_true(json_equal(json_object_get(d, "parameters"), json_object_get(source, "parameters")));
    assert_true(json_equal(json_object_get(d, "unquantized_bytes"), json_object_get(source, "unquantized_bytes")));
    json_decref(d);
    json_decref(source);
    model_close(made);
    fixture_close(&f);
}

static void a_scale_that_is_no_number_is_named(void **state) {
    (void)state;
    struct fixture f;
    struct run r;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    write_all(&f);
    spoil(&f, "model.layers.3.self_attn.k_proj.weight_scale", 0x7e00);
    run_init(&r);
    assert_int_equal(run_job(&r, f.path, FIXTURE "heldout.txt", "{" EVAL "}", NULL, NULL), RC_INVALID);
    assert_non_null(strstr(r.err.message, "model.layers.3.self_attn.k_proj.weight_scale is NaN"));
    run_release(&r);
    fixture_close(&f);
}

static void an_fp8_that_is_no_number_is_named(void **state) {
    (void)state;
    static const char *const ids[] = {"fp8"};
    struct fixture f;
    struct run r;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, ids, 1, "none");
    write_all(&f);
    spoil(&f, "model.layers.3.self_attn.k_proj.weight", 0xff00);
    run_init(&r);
    assert_int_equal(run_job(&r, f.path, FIXTURE "heldout.txt", "{" EVAL "}", NULL, NULL), RC_INVALID);
    assert_non_null(strstr(r.err.message, "element 1 of model.layers.3.self_attn.k_proj.weight is NaN"));
    run_release(&r);
    fixture_close(&f);
}

static void codes_that_are_none_are_refused(void **state) {
    (void)state;
    static const char *const ids[] = {"hqq5g64-hqqpack"};
    struct fixture f;
    struct run r;
    fixture_open(&f, TINY, TARGET_NONE, ids, 1, NULL);
    write_all(&f);
    spoil(&f, "model.layers.3.self_attn.k_proj.weight_packed", 0xffff);
    run_init(&r);
    assert_int_equal(run_job(&r, f.path, FIXTURE "heldout.txt", "{" EVAL "}", NULL, NULL), RC_INVALID);
    assert_non_null(strstr(r.err.message, "model.layers.3.self_attn.k_proj in model-00004-of-00007.safetensors"));
    run_release(&r);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_reads_back_to_the_last_bit),
        cmocka_unit_test(fp8_and_columns_out_of_order_read_back_too),
        cmocka_unit_test(an_eval_of_it_is_the_eval_of_its_codes),
        cmocka_unit_test(a_recipe_is_evaluated_on_it),
        cmocka_unit_test(it_is_profiled_like_any_model),
        cmocka_unit_test(a_head_that_is_the_embedding_is_not_looked_for),
        cmocka_unit_test(a_packed_byte_changes_its_linears_fingerprint_alone),
        cmocka_unit_test(it_is_described_with_what_it_takes),
        cmocka_unit_test(a_scale_that_is_no_number_is_named),
        cmocka_unit_test(an_fp8_that_is_no_number_is_named),
        cmocka_unit_test(codes_that_are_none_are_refused),
    };
    return cmocka_run_group_tests_name("artifact", tests, NULL, NULL);
}
