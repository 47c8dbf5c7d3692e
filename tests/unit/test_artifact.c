/* An artifact is whole or absent, equal to the last byte however it was interrupted, and worth what its codes are. */
#include "tests/unit/run_job.h"

#include "tests/unit/artifact_maker.h"
#include "tests/unit/scratch.h"
#include "tests/unit/tiny_copy.h"
#include "worker/model/describe.h"
#include "worker/model/fingerprint.h"
#include "worker/pipeline/block.h"
#include "worker/pipeline/upload.h"

#include <dirent.h>
#include <sys/mount.h>

static struct err err;

static const char *const mixed[] = {"rtn4g64-sym",     "rtn3g32-sym", "none",
                                    "rtn4g64-intzero", "rtn2g0-sym",  "rtn8g0-intzero"};
static const char *const ours[] = {"rtn4g64", "hqq3g64-hqqpack", "rtn5g16-sym",
                                   "hqq2g0",  "rtn3g80-intzero", "hqq5g64-hqqpack"};
enum { MIXED = 6 };

/* A model and how it is to be stored. */
struct fixture {
    struct scratch folder;
    struct model *model;
    struct candidate *candidates;
    json_t *allocation, *provenance;
    char path[128];
    struct artifact_maker m;
};

static void must(enum rc rc) {
    if (rc != RC_OK) fail_msg("%s", err.message);
}

static void fixture_open(struct fixture *f, const char *model, enum target target, const char *const *ids, int count,
                         const char *head) {
    static const struct backend_options options = {.threads = 1};
    *f = (struct fixture){.folder = scratch_open()};
    must(model_open("source", model, &f->model, &err));
    f->candidates = maker_candidates(f->model, ids, count, head, &err);
    assert_non_null(f->candidates);
    f->allocation = json_pack("{si sf}", "b", 1, "a", 3.3);
    f->provenance = json_pack("{ss}", "fingerprint", "0123");
    snprintf(f->path, sizeof f->path, "%s/made", f->folder.path);
    f->m.spec = (struct artifact_spec){f->model, f->path, target, f->candidates, f->allocation, f->provenance};
    must(backend_cpu.open(&options, &f->m.device, &err));
}

static void fixture_close(struct fixture *f) {
    artifact_close(f->m.artifact);
    backend_cpu.close(f->m.device);
    free(f->candidates);
    json_decref(f->allocation);
    json_decref(f->provenance);
    model_close(f->model);
    scratch_close(&f->folder);
}

static void write_shards(struct fixture *f, int from, int to) {
    for (int shard = from; shard < to; shard++)
        must(maker_shard(&f->m, shard, &err));
}

static void write_all(struct fixture *f) {
    must(artifact_open(&f->m.spec, &f->m.artifact, &err));
    write_shards(f, 0, artifact_shards(f->model));
    must(artifact_finish(f->m.artifact, &err));
    artifact_close(f->m.artifact);
    f->m.artifact = NULL;
}

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

static void check_values(struct fixture *f) {
    struct job job = {.id = "test", .backend = &backend_cpu, .device = f->m.device, .scratch = "/tmp"};
    struct model *made;
    must(model_open("made", f->path, &made, &err));
    assert_int_equal(made->linear_count, f->model->linear_count);
    for (int64_t i = 0; i < made->linear_count; i++)
        check_linear(f, &job, made, i);
    for (int block = 0; block < made->arch.blocks; block++)
        check_block(&job, made, block);
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
    if (run_job(&r, model, FIXTURE "heldout.txt", spec, NULL, NULL) != RC_OK) fail_msg("%s", r.err.message);
    json_t *windows = json_array(), *row;
    size_t i;
    json_array_foreach(r.rows, i, row) if (!strcmp(json_string_value(json_object_get(row, "phase")), "window"))
        json_array_append(windows, json_object_get(row, "data"));
    run_release(&r);
    return windows;
}

#define EVAL "'kind':'eval','model':'M','dataset':'D','length':128,'windows':3"

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
        fail_msg("%s", r.err.message);
    assert_non_null(row_of(&r, "lm_head", "rtn4g64"));
    /* What is on its grid already stays there. */
    const json_t *same = row_of(&r, f.model->linears[0].name, "rtn4g64"), *other = row_of(&r, "lm_head", "rtn4g64");
    assert_true(json_number_value(json_object_get(same, "drift")) <
                json_number_value(json_object_get(other, "drift")) / 10);
    run_release(&r);
    fixture_close(&f);
}

/* --- as a model --- */

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
            assert_true((memcmp(&before[l], &after[l], sizeof *before) != 0) == (l == linear[i]));
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

/* --- whole or absent --- */

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names and bytes of all files of a folder, one after the other; the caller frees. */
static char *folder_bytes(const char *path, size_t *len) {
    DIR *dir = opendir(path);
    char *names[64], file[256], *all = xcalloc(1, 16 << 20);
    int count = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            names[count++] = xstrdup(entry->d_name);
    closedir(dir);
    qsort(names, (size_t)count, sizeof *names, by_name);
    *len = 0;
    for (int i = 0; i < count; i++) {
        size_t bytes;
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        char *content = scratch_load(file, &bytes);
        *len += (size_t)sprintf(all + *len, "\n%s %zu\n", names[i], bytes);
        memcpy(all + *len, content, bytes);
        *len += bytes;
        free(content);
        free(names[i]);
    }
    return all;
}

static void check_same_folders(const char *a, const char *b) {
    size_t a_len, b_len;
    char *x = folder_bytes(a, &a_len), *y = folder_bytes(b, &b_len);
    assert_int_equal(a_len, b_len);
    assert_true(memcmp(x, y, a_len) == 0);
    free(x);
    free(y);
}

static bool is_there(const struct fixture *f, const char *name) {
    return faccessat(f->folder.fd, name, F_OK, 0) == 0;
}

/* A kill leaves complete shards and one that was being written. */
static void stop_after(struct fixture *f, int shards) {
    must(artifact_open(&f->m.spec, &f->m.artifact, &err));
    write_shards(f, 0, shards);
    artifact_close(f->m.artifact);
    f->m.artifact = NULL;
    scratch_write(&f->folder, ".made.partial/.model-00004-of-00007.safetensors.writing", "half", 4);
    assert_true(!is_there(f, "made") && is_there(f, ".made.partial"));
}

static void a_killed_writer_loses_no_shard_and_changes_no_byte(void **state) {
    (void)state;
    struct fixture undisturbed, f;
    fixture_open(&undisturbed, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    write_all(&undisturbed);
    for (int shards = 0; shards <= 7; shards += 3) {
        fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
        stop_after(&f, shards);
        must(artifact_open(&f.m.spec, &f.m.artifact, &err));
        for (int shard = 0; shard < 7; shard++)
            assert_true(artifact_has(f.m.artifact, shard) == (shard < shards));
        write_shards(&f, shards, 7);
        must(artifact_finish(f.m.artifact, &err));
        assert_true(is_there(&f, "made") && !is_there(&f, ".made.partial"));
        unlinkat(f.folder.fd, "made/.model-00004-of-00007.safetensors.writing", 0); /* of a shard that was written */
        check_same_folders(undisturbed.path, f.path);
        fixture_close(&f);
    }
    fixture_close(&undisturbed);
}

static void what_another_writer_left_is_not_taken(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    stop_after(&f, 2);
    json_object_set_new(f.provenance, "fingerprint", json_string("4567"));
    must(artifact_open(&f.m.spec, &f.m.artifact, &err));
    assert_false(artifact_has(f.m.artifact, 0));
    assert_false(is_there(&f, ".made.partial/model-00001-of-00007.safetensors"));
    fixture_close(&f);
}

static void a_finished_one_is_recognized_and_another_is_not_replaced(void **state) {
    (void)state;
    struct fixture f;
    struct artifact *again;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    write_all(&f);
    must(artifact_open(&f.m.spec, &again, &err));
    assert_true(artifact_has(again, 0) && artifact_has(again, 6));
    must(artifact_finish(again, &err));
    artifact_close(again);
    json_object_set_new(f.provenance, "fingerprint", json_string("4567"));
    assert_int_equal(artifact_open(&f.m.spec, &again, &err), RC_CONFLICT);
    assert_non_null(strstr(err.message, f.path));
    assert_false(is_there(&f, ".made.partial"));
    fixture_close(&f);
}

static void two_writers_of_one_path_are_refused(void **state) {
    (void)state;
    struct fixture f;
    struct artifact *second;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    must(artifact_open(&f.m.spec, &f.m.artifact, &err));
    assert_int_equal(artifact_open(&f.m.spec, &second, &err), RC_CONFLICT);
    assert_non_null(strstr(err.message, "another process"));
    fixture_close(&f);
}

static void nothing_is_named_before_all_is_there(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    must(artifact_open(&f.m.spec, &f.m.artifact, &err));
    assert_int_equal(artifact_finish(f.m.artifact, &err), RC_INTERNAL);
    assert_int_equal(artifact_write(f.m.artifact, 0, &err), RC_INTERNAL);
    assert_non_null(strstr(err.message, "q_proj.weight_packed"));
    assert_false(artifact_has(f.m.artifact, 0));
    struct packed wrong = {.codes_bytes = 3};
    assert_int_equal(artifact_put(f.m.artifact, 0, &wrong, &err), RC_INTERNAL);
    assert_false(is_there(&f, "made"));
    fixture_close(&f);
}

/* --- size --- */

static int64_t shards_on_disk(const struct fixture *f) {
    int64_t bytes = 0;
    for (int shard = 1; shard <= 7; shard++) {
        char file[192];
        struct stat st;
        snprintf(file, sizeof file, "%s/model-%05d-of-00007.safetensors", f->path, shard);
        assert_int_equal(stat(file, &st), 0);
        bytes += st.st_size;
    }
    return bytes;
}

static void its_size_is_known_beforehand(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, TINY, TARGET_NONE, ours, MIXED, NULL);
    int64_t before = artifact_bytes(&f.m.spec);
    write_all(&f);
    size_t len;
    free(folder_bytes(f.path, &len));
    assert_true(before >= (int64_t)len - 4096 && before >= shards_on_disk(&f) + 55608);
    assert_true(before < shards_on_disk(&f) + (2 << 20));
    fixture_close(&f);
}

static void a_full_disk_is_told_with_folder_and_bytes(void **state) {
    (void)state;
    struct fixture f;
    char disk[160];
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    snprintf(disk, sizeof disk, "%s/disk", f.folder.path);
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("tmpfs", disk, "tmpfs", 0, "size=3m") != 0) {
        fixture_close(&f);
        skip(); /* takes root */
    }
    snprintf(f.path, sizeof f.path, "%s/disk/made", f.folder.path);
    struct candidate *small = f.candidates, *plain = xcalloc((size_t)f.model->linear_count, sizeof *plain);
    f.m.spec.candidates = plain; /* 2.6 MB of weights and what lies beside them */
    assert_int_equal(artifact_open(&f.m.spec, &f.m.artifact, &err), RC_NO_SPACE);
    assert_non_null(strstr(err.message, disk));
    assert_non_null(strstr(err.message, "bytes left"));
    /* Room at first, which others take. */
    f.m.spec.candidates = small;
    must(artifact_open(&f.m.spec, &f.m.artifact, &err));
    strncat(disk, "/filler", sizeof disk - strlen(disk) - 1);
    int filler = open(disk, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    char block[4096] = {1};
    while (write(filler, block, sizeof block) > 0)
        continue;
    close(filler);
    enum rc rc = maker_shard(&f.m, 0, &err);
    assert_int_equal(rc, RC_NO_SPACE);
    assert_non_null(strstr(err.message, "bytes in"));
    assert_false(artifact_has(f.m.artifact, 0));
    unlink(disk);
    must(maker_shard(&f.m, 0, &err));
    artifact_close(f.m.artifact);
    f.m.artifact = NULL;
    *strrchr(disk, '/') = '\0';
    assert_int_equal(umount(disk), 0);
    free(plain);
    fixture_close(&f);
}

/* --- what goes in --- */

static void other_values_take_a_tensors_place(void **state) {
    (void)state;
    struct fixture f;
    struct model *made;
    float norm[128];
    uint16_t gate[384 * 128];
    for (int i = 0; i < 128; i++)
        norm[i] = (float)i;
    for (int i = 0; i < 384 * 128; i++)
        gate[i] = (uint16_t)(i % 1000);
    static const char *const none[] = {"none"};
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, none, 1, NULL);
    const struct st_tensor *weight = safetensors_find(f.model->tensors, "model.layers.2.mlp.gate_proj.weight");
    must(artifact_open(&f.m.spec, &f.m.artifact, &err));
    must(artifact_replace(f.m.artifact, f.model->blocks[2].post_norm, DTYPE_F32, norm, &err));
    must(artifact_replace(f.m.artifact, weight, DTYPE_F16, gate, &err));
    assert_int_equal(artifact_replace(f.m.artifact, weight, DTYPE_I32, gate, &err), RC_INTERNAL);
    write_shards(&f, 0, 7);
    must(artifact_finish(f.m.artifact, &err));
    must(model_open("made", f.path, &made, &err));
    assert_null(made->quantization);
    assert_memory_equal(made->blocks[2].post_norm->data, norm, sizeof norm);
    const struct st_tensor *stored = safetensors_find(made->tensors, "model.layers.2.mlp.gate_proj.weight");
    assert_int_equal(stored->type, DTYPE_F16);
    assert_memory_equal(stored->data, gate, sizeof gate);
    assert_int_equal(made->blocks[1].post_norm->bytes, f.model->blocks[1].post_norm->bytes);
    model_close(made);
    fixture_close(&f);
}

static void a_head_that_is_quantized_is_no_longer_tied(void **state) {
    (void)state;
    struct fixture f;
    struct model *made;
    for (int quantized = 0; quantized < 2; quantized++) {
        fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, quantized ? "rtn4g64-sym" : "none");
        assert_true(f.model->arch.tied);
        write_all(&f);
        must(model_open("made", f.path, &made, &err));
        assert_true(made->arch.tied == !quantized);
        assert_true((made->head == NULL) == quantized);
        assert_memory_equal(made->embedding->data, f.model->embedding->data, (size_t)f.model->embedding->bytes);
        model_close(made);
        fixture_close(&f);
    }
}

static void a_target_is_told_what_it_cannot_carry(void **state) {
    (void)state;
    static const char *const one[] = {"rtn4g64-sym"};
    struct fixture f;
    fixture_open(&f, TINY, TARGET_VLLM, one, 1, NULL);
    must(artifact_check(&f.m.spec, &err));
    must(candidate_from_id("rtn3g64-sym", &f.candidates[8], &err)); /* k_proj of block 1 */
    assert_int_equal(artifact_check(&f.m.spec, &err), RC_UNSUPPORTED);
    assert_non_null(strstr(err.message, "model.layers.1.self_attn.q_proj and model.layers.1.self_attn.k_proj"));
    f.m.spec.target = TARGET_COMPRESSED_TENSORS;
    must(artifact_check(&f.m.spec, &err));
    must(candidate_from_id("hqq3g64", &f.candidates[8], &err));
    assert_int_equal(artifact_open(&f.m.spec, &f.m.artifact, &err), RC_UNSUPPORTED);
    assert_non_null(strstr(err.message, "model.layers.1.self_attn.k_proj"));
    f.m.spec.target = TARGET_NONE;
    must(artifact_check(&f.m.spec, &err));
    fixture_close(&f);
}

static void a_quantized_model_is_no_source(void **state) {
    (void)state;
    struct fixture f, g;
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    write_all(&f);
    fixture_open(&g, f.path, TARGET_COMPRESSED_TENSORS, mixed, MIXED, NULL);
    assert_int_equal(artifact_open(&g.m.spec, &g.m.artifact, &err), RC_INVALID);
    assert_non_null(strstr(err.message, "quantized already"));
    fixture_close(&g);
    fixture_close(&f);
}

static void the_files_beside_the_weights_say_what_they_are(void **state) {
    (void)state;
    struct fixture f;
    size_t len;
    char file[192];
    fixture_open(&f, TINY, TARGET_COMPRESSED_TENSORS, mixed, MIXED, "none");
    write_all(&f);
    snprintf(file, sizeof file, "%s/allocation.json", f.path);
    char *text = scratch_load(file, &len);
    assert_string_equal(text, "{\n  \"a\": 3.3,\n  \"b\": 1\n}");
    free(text);
    snprintf(file, sizeof file, "%s/README.md", f.path);
    text = scratch_load(file, &len);
    assert_non_null(strstr(text, "# source, quantized"));
    assert_non_null(strstr(text, "| 7 | 3 bits, symmetric, groups of 32 | 3.50 |"));
    assert_non_null(strstr(text, "CompressedTensorsDequantizer"));
    free(text);
    snprintf(file, sizeof file, "%s/tokenizer.json", f.path);
    text = scratch_load(file, &len);
    assert_int_equal(len, 55608);
    free(text);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_reads_back_to_the_last_bit),
        cmocka_unit_test(an_eval_of_it_is_the_eval_of_its_codes),
        cmocka_unit_test(it_is_profiled_like_any_model),
        cmocka_unit_test(a_packed_byte_changes_its_linears_fingerprint_alone),
        cmocka_unit_test(it_is_described_with_what_it_takes),
        cmocka_unit_test(a_scale_that_is_no_number_is_named),
        cmocka_unit_test(codes_that_are_none_are_refused),
        cmocka_unit_test(a_killed_writer_loses_no_shard_and_changes_no_byte),
        cmocka_unit_test(what_another_writer_left_is_not_taken),
        cmocka_unit_test(a_finished_one_is_recognized_and_another_is_not_replaced),
        cmocka_unit_test(two_writers_of_one_path_are_refused),
        cmocka_unit_test(nothing_is_named_before_all_is_there),
        cmocka_unit_test(its_size_is_known_beforehand),
        cmocka_unit_test(a_full_disk_is_told_with_folder_and_bytes),
        cmocka_unit_test(other_values_take_a_tensors_place),
        cmocka_unit_test(a_head_that_is_quantized_is_no_longer_tied),
        cmocka_unit_test(a_target_is_told_what_it_cannot_carry),
        cmocka_unit_test(a_quantized_model_is_no_source),
        cmocka_unit_test(the_files_beside_the_weights_say_what_they_are),
    };
    return cmocka_run_group_tests_name("artifact", tests, NULL, NULL);
}
