/* An artifact is whole or absent, and equal to the last byte however it was interrupted. */
#include "tests/unit/artifact_fixture.h"

#include <dirent.h>
#include <sys/mount.h>

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

/* Bytes that were said to be missing. */
static long long refused_bytes(struct fixture *f, bool refined) {
    f->m.spec.refined = refined;
    assert_int_equal(artifact_open(&f->m.spec, &f->m.artifact, &err), RC_NO_SPACE);
    f->m.spec.refined = false;
    const char *takes = strstr(err.message, "' takes ");
    assert_non_null(takes);
    return atoll(takes + strlen("' takes "));
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
    long long takes = refused_bytes(&f, false);
    assert_non_null(strstr(err.message, disk));
    assert_non_null(strstr(err.message, "bytes left"));
    assert_in_range(refused_bytes(&f, true) - takes, 100000, 1000000); /* its largest shard once more */
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
    assert_false(is_there(&f, "disk/.made.partial/.model-00001-of-00007.safetensors.writing"));
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
    return cmocka_run_group_tests_name("artifact_write", tests, NULL, NULL);
}
