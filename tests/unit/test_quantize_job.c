/* A quantize job writes the model that an eval of its recipe runs, whenever and however often it is stopped: to the
 * last byte; and an eval reads it as that. */
#include "tests/unit/late_copies.h"
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#include <dirent.h>
#include <sys/file.h>

#include "worker/model/model.h"

#define HELDOUT FIXTURE "heldout.txt"
#define CALIBRATION ",'calibration':{'dataset':'C','samples':2,'length':48,'sampling':'sequential'}"
#define QUANTIZE(more) "{'kind':'quantize','model':'M','name':'made'" more "}"
#define EVAL(more) "{'kind':'eval','model':'M','dataset':'D','length':64,'windows':2" more "}"
#define UNIFORM(method) ",'uniform':{'method':'" method "','bits':4,'group':64,'symmetric':true}"
enum { BLOCKS = 6, PER_BLOCK = 7, LINEARS = BLOCKS * PER_BLOCK };

/* Everything of one job in a folder of its own. */
struct made {
    struct scratch folder;
    char path[96];
    struct run run;
};

static void made_open(struct made *m) {
    *m = (struct made){.folder = scratch_open()};
    snprintf(m->path, sizeof m->path, "%s/made", m->folder.path);
    run_init(&m->run);
    m->run.artifact = m->path;
}

static void made_close(struct made *m) {
    run_release(&m->run);
    scratch_close(&m->folder);
}

static enum rc make(struct made *m, const char *spec, json_t *earlier, json_t *inputs) {
    return run_job(&m->run, FIXTURE "tiny", HELDOUT, spec, earlier, inputs);
}

static void must_make(struct made *m, const char *spec, json_t *earlier, json_t *inputs) {
    if (make(m, spec, earlier, inputs) != RC_OK) fail_msg("%s", m->run.err.message);
}

static int count_files(const char *path) {
    DIR *dir = opendir(path);
    int count = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_type == DT_REG;
    closedir(dir);
    return count;
}

static void assert_same_folders(const char *a, const char *b) {
    DIR *dir = opendir(a);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char x[512], y[512];
        size_t x_len, y_len;
        if (entry->d_type != DT_REG) continue;
        snprintf(x, sizeof x, "%s/%s", a, entry->d_name);
        snprintf(y, sizeof y, "%s/%s", b, entry->d_name);
        char *left = scratch_load(x, &x_len), *right = scratch_load(y, &y_len);
        if (x_len != y_len || memcmp(left, right, x_len) != 0) fail_msg("%s differs", entry->d_name);
        free(left);
        free(right);
    }
    closedir(dir);
    assert_int_equal(count_files(a), count_files(b));
}

/* Of this run only where it is, and how long it took. */
static void assert_same_results(const struct run *a, const struct run *b) {
    json_object_del(a->result, "path");
    json_object_del(b->result, "path");
    json_object_del(json_object_get(a->result, "refined"), "seconds");
    json_object_del(json_object_get(b->result, "refined"), "seconds");
    if (json_equal(a->result, b->result)) return;
    fail_msg("%s\n%s", json_dumps(a->result, 0), json_dumps(b->result, 0));
}

static const char *const recipes[] = {
    QUANTIZE(UNIFORM("awq+gptq") CALIBRATION), /* folds, and each block from the last */
    QUANTIZE(",'uniform':{'method':'gptq','bits':3,'group':64,'order':'activation'}" CALIBRATION),
    QUANTIZE(UNIFORM("awq") CALIBRATION), /* from the reference */
    QUANTIZE(UNIFORM("rtn")),
    QUANTIZE(",'uniform':{'method':'fp8','per':'tensor'}"),
    /* The last block first. */
    QUANTIZE(",'refine':false,'uniform':{'method':'gptq','bits':4,'group':64,'guided':true}" CALIBRATION),
    QUANTIZE(",'refine':false,'uniform':{'method':'awq+gptq','bits':4,'group':64,'guided':true}" CALIBRATION),
    QUANTIZE(",'refine':false,'uniform':{'bits':4,'group':64,'two_sided':true}" CALIBRATION),
};
enum { RECIPES = sizeof recipes / sizeof *recipes };

/* --- what is made --- */

static json_t *allocation(const char *const *assigned, int count, json_t *more) {
    json_t *list = json_array(), *result = more ? more : json_object();
    for (int i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{ss ss}", "name", assigned[2 * i], "candidate", assigned[2 * i + 1]));
    json_object_set_new(result, "assignment", list);
    return json_pack("{s{so}}", "allocation", "result", result);
}

static void assert_same_losses(const struct run *recipe, const struct run *artifact) {
    assert_int_equal(json_array_size(artifact->rows), 2 * 2 + 1);
    size_t i, compared = 0;
    json_t *row;
    json_array_foreach(artifact->rows, i, row) {
        size_t k;
        json_t *other;
        json_array_foreach(recipe->rows, k, other) {
            const char *phase = json_string_value(json_object_get(row, "phase"));
            if (strcmp(phase, json_string_value(json_object_get(other, "phase"))) != 0 ||
                !json_equal(json_object_get(row, "index"), json_object_get(other, "index")))
                continue;
            assert_true(json_equal(row, other));
            compared++;
        }
    }
    assert_int_equal(compared, json_array_size(artifact->rows));
}

/* `recipe` is what both specs say beside the rest. */
static void compare_with_eval(const char *quantize, const char *eval, json_t *inputs) {
    struct made m;
    struct run in_memory, artifact;
    made_open(&m);
    run_init(&in_memory);
    run_init(&artifact);
    artifact.artifact = m.path;
    must_make(&m, quantize, NULL, inputs);
    assert_int_equal(run_job(&in_memory, FIXTURE "tiny", HELDOUT, eval, NULL, inputs), RC_OK);
    if (run_job(&artifact, FIXTURE "tiny", HELDOUT, EVAL(",'artifact':'made'"), NULL, NULL) != RC_OK)
        fail_msg("%s", artifact.err.message);
    assert_same_losses(&in_memory, &artifact);
    const json_t *notes = json_object_get(json_object_get(in_memory.result, "calibration"), "linears");
    assert_true(json_equal(notes, json_object_get(json_object_get(m.run.result, "calibration"), "linears")) ||
                notes == NULL);
    made_close(&m);
    run_release(&in_memory);
    run_release(&artifact);
}

#define BOTH(more) QUANTIZE(more), EVAL(more)
static void an_artifact_is_what_its_recipe_runs(void **state) {
    (void)state;
    static const char *const specs[][2] = {
        {BOTH(UNIFORM("awq+gptq") CALIBRATION)},
        {BOTH(UNIFORM("awq") CALIBRATION)},
        {BOTH(",'uniform':{'method':'gptq','bits':3,'group':64,'order':'activation'}" CALIBRATION)},
        {BOTH(UNIFORM("awq+gptq','guided':true,'range':'weighted") CALIBRATION)}, /* and refined */
        {BOTH(UNIFORM("gptq','guided':true,'range':'weighted") ",'refine':false" CALIBRATION)},
        {BOTH(UNIFORM("gptq','guided':true,'two_sided':true,'range':'weighted") CALIBRATION)}, /* and refined */
        {BOTH(",'uniform':{'method':'gptq','bits':3,'group':64,'order':'activation'},'refine':true" CALIBRATION)},
        {BOTH(",'uniform':{'method':'hqq','bits':3,'group':64,'layout':'hqq'},'refine':true" CALIBRATION)},
        {BOTH(",'uniform':{'method':'hqq','bits':3,'group':64,'layout':'hqq'}")},
        {BOTH(UNIFORM("rtn"))},
        {BOTH(",'uniform':{'method':'fp8'}")},
        {BOTH(",'uniform':{'method':'none'}")},
    };
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        compare_with_eval(specs[i][0], specs[i][1], NULL);
}

/* Kept Linears that a scale went into, and a head whose scale the final norm takes. */
static void an_allocation_with_a_head_is_too(void **state) {
    (void)state;
    static const char *const assigned[] = {"model.layers.0.self_attn.q_proj",
                                           "awq4g64",
                                           "model.layers.1.self_attn.v_proj",
                                           "fp8",
                                           "model.layers.1.self_attn.o_proj",
                                           "awq+gptq3g64",
                                           "model.layers.2.mlp.down_proj",
                                           "gptq2g64",
                                           "model.layers.5.mlp.gate_proj",
                                           "rtn4g64-sym",
                                           "model.layers.3.self_attn.k_proj",
                                           "fp8-tensor",
                                           "lm_head",
                                           "gptq8g64"};
    json_t *inputs = allocation(assigned, 7, NULL);
    compare_with_eval(BOTH(",'allocation':'A'" CALIBRATION), inputs);
    compare_with_eval(BOTH(",'allocation':'A','refine':true" CALIBRATION), inputs);
    json_decref(inputs);
}

/* --- stopped and gone on --- */

static void stop_and_go_on(const char *spec, const struct made *whole, int64_t stop) {
    struct made m;
    made_open(&m);
    m.run.stop_after = stop;
    assert_int_equal(make(&m, spec, NULL, NULL), RC_UNAVAILABLE);
    assert_int_equal(access(m.path, F_OK), -1);
    struct made rest = m;
    run_init(&rest.run);
    rest.run.artifact = rest.path;
    must_make(&rest, spec, m.run.rows, NULL);
    assert_int_equal(json_array_size(rest.run.rows), LINEARS - stop);
    assert_false(rest.run.went_back);
    assert_same_results(&whole->run, &rest.run);
    assert_same_folders(whole->path, rest.path);
    run_release(&m.run);
    made_close(&rest);
}

static void a_stopped_job_ends_with_the_same_bytes(void **state) {
    (void)state;
    static const int64_t stops[] = {3 * PER_BLOCK + 4, 1, PER_BLOCK + 1, PER_BLOCK, LINEARS - 1};
    /* AWQ's search takes five times as long as all else: its recipes have the stops that differ most. */
    static const size_t counts[RECIPES] = {3, 5, 1, 5, 5, 5, 1, 1};
    for (size_t r = 0; r < RECIPES; r++) {
        struct made whole;
        made_open(&whole);
        must_make(&whole, recipes[r], NULL, NULL);
        assert_int_equal(json_array_size(whole.run.rows), LINEARS);
        for (size_t i = 0; i < counts[r]; i++)
            stop_and_go_on(recipes[r], &whole, stops[i]);
        made_close(&whole);
    }
}

/* --- refined --- */

static const char refining[] = QUANTIZE(",'uniform':{'method':'gptq','bits':3,'group':64},'refine':true" CALIBRATION);

/* A job that is lost in the phase; NULL: with its last row, when scales are refined and not written. */
static struct made stopped_in(const char *phase) {
    struct made m;
    made_open(&m);
    m.run.stop_phase = phase;
    m.run.stop_after = phase ? 0 : LINEARS;
    assert_int_equal(make(&m, refining, NULL, NULL), RC_UNAVAILABLE);
    assert_int_equal(access(m.path, F_OK), -1);
    return m;
}

static void assert_goes_on(struct made *m, const struct made *whole) {
    struct made rest = *m;
    run_init(&rest.run);
    rest.run.artifact = rest.path;
    must_make(&rest, refining, m->run.rows, NULL);
    assert_same_results(&whole->run, &rest.run);
    assert_same_folders(whole->path, rest.path);
    json_decref(m->run.rows);
    json_decref(m->run.cache);
    made_close(&rest);
}

static void copy_file(const struct made *from, const struct made *to, const char *name) {
    char a[160], b[160];
    size_t len;
    snprintf(a, sizeof a, "%s/.made.partial/%s", from->folder.path, name);
    snprintf(b, sizeof b, "%s/.made.partial/%s", to->folder.path, name);
    char *bytes = scratch_load(a, &len);
    FILE *f = fopen(b, "w");
    assert_true(f && fwrite(bytes, 1, len, f) == len && fclose(f) == 0);
    free(bytes);
}

/* Killed while the reference is walked, between steps, when they are through, and with any number of shards that have
 * their scales. */
static void refining_ends_with_the_same_bytes(void **state) {
    (void)state;
    static const char *const phases[] = {"reference", "refine", NULL, "write"};
    struct made whole;
    made_open(&whole);
    must_make(&whole, refining, NULL, NULL);
    assert_int_equal(json_array_size(whole.run.rows), LINEARS + 1);
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        struct made m = stopped_in(phases[i]);
        assert_goes_on(&m, &whole);
    }
    struct made early = stopped_in(NULL), done = stopped_in("write");
    for (int block = 2; block < BLOCKS; block++) {
        char name[48];
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", block + 1, BLOCKS + 1);
        copy_file(&early, &done, name);
    }
    assert_goes_on(&done, &whole);
    made_close(&early);
    made_close(&whole);
}

/* Codes, zeros and whatever else is there. */
static void refining_changes_scales_alone(void **state) {
    (void)state;
    struct made plain, refined;
    struct err e;
    made_open(&plain);
    made_open(&refined);
    must_make(&plain, QUANTIZE(",'uniform':{'method':'gptq','bits':3,'group':64}" CALIBRATION), NULL, NULL);
    must_make(&refined, refining, NULL, NULL);
    struct model *a, *b;
    assert_int_equal(model_open("a", plain.path, &a, &e), RC_OK);
    assert_int_equal(model_open("b", refined.path, &b, &e), RC_OK);
    int64_t count, others, changed = 0;
    const struct st_tensor *x = safetensors_all(a->tensors, &count), *y = safetensors_all(b->tensors, &others);
    assert_int_equal(count, others);
    for (int64_t i = 0; i < count; i++) {
        assert_string_equal(x[i].name, y[i].name);
        assert_int_equal(x[i].bytes, y[i].bytes);
        bool same = !memcmp(x[i].data, y[i].data, (size_t)x[i].bytes);
        assert_true(same || strstr(x[i].name, ".weight_scale"));
        changed += !same;
    }
    assert_int_equal(changed, LINEARS);
    assert_int_equal(count_files(plain.path), count_files(refined.path));
    model_close(a);
    model_close(b);
    char path[128];
    size_t len;
    snprintf(path, sizeof path, "%s/provenance.json", refined.path);
    char *text = scratch_load(path, &len);
    assert_non_null(strstr(text, "\"refined\""));
    free(text);
    made_close(&plain);
    made_close(&refined);
}

/* --- what is not done twice --- */

static int quantized;

static enum rc count_quantize(struct backend_state *state, const struct quantize_args *a, int count, struct err *e) {
    quantized += count;
    return backend_cpu.quantize(state, a, count, e);
}

/* What is written is not quantized again; what is told of but not written is. */
static void assert_complete_blocks_are_kept(const char *recipe) {
    struct backend counting = backend_cpu;
    counting.quantize = count_quantize;
    struct made m;
    made_open(&m);
    m.run.stop_after = 4 * PER_BLOCK + 3;
    assert_int_equal(make(&m, recipe, NULL, NULL), RC_UNAVAILABLE);
    json_t *rows = json_incref(m.run.rows);
    m.run.stop_after = 0;
    m.run.backend = &counting;
    quantized = 0;
    must_make(&m, recipe, rows, NULL);
    assert_int_equal(quantized, 2 * PER_BLOCK);
    quantized = 0;
    must_make(&m, recipe, m.run.rows, NULL); /* the result was lost, nothing else */
    assert_int_equal(quantized, 0);
    json_decref(rows);
    made_close(&m);
}

static void complete_blocks_are_kept(void **state) {
    (void)state;
    assert_complete_blocks_are_kept(recipes[1]);
    assert_complete_blocks_are_kept(
        QUANTIZE(",'refine':false,'uniform':{'method':'gptq','bits':3,'group':64,'guided':true}" CALIBRATION));
}

static json_t *rows_but(const json_t *rows, int64_t index) {
    json_t *out = json_array(), *row;
    size_t i;
    json_array_foreach(rows, i, row) if (json_integer_value(json_object_get(row, "index")) != index)
        json_array_append(out, row);
    return out;
}

/* The daemon died with the row, the shard is there; also when all are. */
static void lost_rows_are_made_again(void **state) {
    (void)state;
    for (int r = 0; r < 2; r++) {
        struct made m, whole;
        made_open(&m);
        made_open(&whole);
        must_make(&whole, recipes[r], NULL, NULL);
        must_make(&m, recipes[r], NULL, NULL);
        json_t *rows = rows_but(m.run.rows, 3 * PER_BLOCK + 2);
        assert_int_equal(json_array_size(rows), LINEARS - 1);
        must_make(&m, recipes[r], rows, NULL);
        assert_int_equal(json_array_size(m.run.rows), LINEARS + 1);
        assert_true(json_equal(json_object_get(json_array_get(m.run.rows, LINEARS), "data"),
                               json_object_get(json_array_get(whole.run.rows, 3 * PER_BLOCK + 2), "data")));
        assert_same_results(&whole.run, &m.run);
        assert_same_folders(whole.path, m.path);
        json_decref(rows);
        made_close(&m);
        made_close(&whole);
    }
}

/* Codes come from the device's memory, written blocks and artifacts go to it. */
static void a_device_with_memory_of_its_own_changes_nothing(void **state) {
    (void)state;
    struct backend device = with_late_copies(backend_cpu);
    device.own_memory = device.loads_ahead = true;
    struct made here, there;
    struct run one, two;
    made_open(&here);
    made_open(&there);
    run_init(&one);
    run_init(&two);
    must_make(&here, recipes[0], NULL, NULL);
    there.run.backend = two.backend = &device;
    there.run.stop_after = 2 * PER_BLOCK + 1;
    assert_int_equal(make(&there, recipes[0], NULL, NULL), RC_UNAVAILABLE);
    there.run.stop_after = 0;
    json_t *rows = json_copy(there.run.rows);
    must_make(&there, recipes[0], rows, NULL);
    assert_same_results(&here.run, &there.run);
    assert_same_folders(here.path, there.path);
    one.artifact = two.artifact = here.path;
    assert_int_equal(run_job(&one, FIXTURE "tiny", HELDOUT, EVAL(",'artifact':'made'"), NULL, NULL), RC_OK);
    assert_int_equal(run_job(&two, FIXTURE "tiny", HELDOUT, EVAL(",'artifact':'made'"), NULL, NULL), RC_OK);
    assert_true(json_equal(one.rows, two.rows));
    json_decref(rows);
    run_release(&one);
    run_release(&two);
    made_close(&here);
    made_close(&there);
}

/* --- refusals --- */

static void another_job_with_the_name_is_refused(void **state) {
    (void)state;
    struct made m;
    made_open(&m);
    m.run.stop_after = PER_BLOCK + 1;
    assert_int_equal(make(&m, recipes[3], NULL, NULL), RC_UNAVAILABLE);
    m.run.stop_after = 0;
    int fd = openat(m.folder.fd, ".made.partial", O_RDONLY | O_DIRECTORY);
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    assert_int_equal(make(&m, recipes[2], NULL, NULL), RC_CONFLICT);
    close(fd);
    must_make(&m, recipes[3], NULL, NULL);
    assert_int_equal(make(&m, recipes[4], NULL, NULL), RC_CONFLICT);
    assert_non_null(strstr(m.run.err.message, "is there already"));
    made_close(&m);
}

static void all_that_a_target_cannot_carry_is_named(void **state) {
    (void)state;
    struct made m;
    made_open(&m);
    static const char *const assigned[] = {
        "model.layers.0.self_attn.q_proj", "rtn4g64",     "model.layers.1.self_attn.q_proj", "rtn3g64",
        "model.layers.3.self_attn.q_proj", "rtn4g64",     "model.layers.2.mlp.down_proj",    "rtn3g64-intzero",
        "model.layers.4.mlp.gate_proj",    "rtn4g64-sym", "model.layers.4.mlp.up_proj",      "rtn8g64-sym"};
    json_t *inputs = allocation(assigned, 6, json_pack("{ss}", "target", "vllm"));
    assert_int_equal(make(&m, QUANTIZE(",'allocation':'A'"), NULL, inputs), RC_UNSUPPORTED);
    const char *said = m.run.err.message;
    assert_string_equal(m.run.err.pointer, "/target");
    assert_non_null(strstr(said, "q_proj (blocks 0-1, 3): vllm has no float zeros"));
    assert_non_null(strstr(said, "down_proj (block 2): vllm has asymmetric kernels for 4 and 8 bits only"));
    assert_non_null(strstr(said, "up_proj (block 4): vllm computes it and gate_proj of its block as one"));
    assert_non_null(strstr(said, "k_proj (blocks 0-1, 3)"));
    assert_int_equal(m.run.progress, 0);
    must_make(&m, QUANTIZE(",'allocation':'A','target':'none'"), NULL, inputs);
    assert_string_equal(json_string_value(json_object_get(m.run.result, "target")), "none");
    json_decref(inputs);
    made_close(&m);
}

/* A refusal has an end: the Linears that are not in it are counted, none is told in part. */
static void what_a_refusal_has_no_room_for_is_counted(void **state) {
    (void)state;
    struct made m;
    made_open(&m);
    static const char *const assigned[] = {
        "model.layers.0.self_attn.q_proj", "rtn4g64",         "model.layers.1.self_attn.k_proj", "rtn3g64-intzero",
        "model.layers.2.mlp.down_proj",    "rtn4g64-hqqpack", "model.layers.3.mlp.down_proj",    "rtn4g48-sym",
        "model.layers.4.mlp.gate_proj",    "rtn4g64-sym",     "model.layers.5.mlp.up_proj",      "rtn8g64-sym"};
    json_t *inputs = allocation(assigned, 6, json_pack("{ss}", "target", "vllm"));
    assert_int_equal(make(&m, QUANTIZE(",'allocation':'A'"), NULL, inputs), RC_UNSUPPORTED);
    const char *said = m.run.err.message, *end = strstr(said, " … and ");
    int more = 0;
    assert_non_null(strstr(said, "q_proj (block 0): vllm has no float zeros"));
    assert_non_null(end);
    assert_int_equal(sscanf(end, " … and %d more", &more), 1);
    assert_true(more > 0 && strchr(end, ':') == NULL && strlen(said) < sizeof m.run.err.message - 1);
    json_decref(inputs);
    made_close(&m);
}

/* An id means nothing where the artifact goes. */
static void what_is_told_of_the_allocation_names_no_jobs(void **state) {
    (void)state;
    struct made m;
    char file[128];
    made_open(&m);
    static const char *const assigned[] = {"model.layers.0.self_attn.q_proj", "rtn4g64"};
    json_t *inputs = allocation(assigned, 1, json_pack("{ss ss ss}", "profile", "P1", "sweep", "S1", "score", "noise"));
    must_make(&m, QUANTIZE(",'allocation':'A'"), NULL, inputs);
    snprintf(file, sizeof file, "%s/allocation.json", m.path);
    json_t *told = json_load_file(file, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(told, "score")), "noise");
    assert_true(!json_object_get(told, "profile") && !json_object_get(told, "sweep"));
    json_decref(told);
    json_decref(inputs);
    made_close(&m);
}

static void an_allocation_is_for_the_weights_it_measured(void **state) {
    (void)state;
    struct made m;
    made_open(&m);
    static const char *const assigned[] = {"model.layers.0.self_attn.q_proj", "rtn4g64"};
    json_t *inputs = allocation(assigned, 1, json_pack("{ss}", "fingerprint", "0123"));
    assert_int_equal(make(&m, QUANTIZE(",'allocation':'A'"), NULL, inputs), RC_INVALID);
    assert_non_null(strstr(m.run.err.message, "fingerprint 0123"));
    json_decref(inputs);
    made_close(&m);
}

static void disturb(uint16_t *w, int64_t rows, int64_t cols) {
    w[rows * cols / 2] ^= 1;
}

static void an_artifact_of_another_model_is_refused(void **state) {
    (void)state;
    struct made m;
    struct scratch other = tiny_copy();
    made_open(&m);
    must_make(&m, recipes[3], NULL, NULL);
    tiny_edit(&other, "model.layers.3.mlp.up_proj.weight", disturb);
    enum rc rc = run_job(&m.run, other.path, HELDOUT, EVAL(",'artifact':'made'"), NULL, NULL);
    assert_int_equal(rc, RC_INVALID);
    assert_string_equal(m.run.err.pointer, "/artifact");
    assert_non_null(strstr(m.run.err.message, "'made' was not made of 'M'"));
    assert_non_null(strstr(m.run.err.message, "380d0af0b7aab345e90c22fc6aab73d5"));
    scratch_close(&other);
    made_close(&m);
}

/* Each device reads it for itself. */
static void a_split_eval_reads_it_too(void **state) {
    (void)state;
    struct made m;
    struct run one, two;
    made_open(&m);
    run_init(&one);
    run_init(&two);
    one.artifact = two.artifact = m.path;
    two.devices = "cpu,cpu";
    must_make(&m, recipes[3], NULL, NULL);
    assert_int_equal(run_job(&one, FIXTURE "tiny", HELDOUT, EVAL(",'artifact':'made'"), NULL, NULL), RC_OK);
    assert_int_equal(run_job(&two, FIXTURE "tiny", HELDOUT, EVAL(",'artifact':'made','devices':'all'"), NULL, NULL),
                     RC_OK);
    assert_true(json_equal(json_object_get(one.result, "quantized"), json_object_get(two.result, "quantized")));
    run_release(&one);
    run_release(&two);
    made_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_artifact_is_what_its_recipe_runs),
        cmocka_unit_test(an_allocation_with_a_head_is_too),
        cmocka_unit_test(a_stopped_job_ends_with_the_same_bytes),
        cmocka_unit_test(refining_ends_with_the_same_bytes),
        cmocka_unit_test(refining_changes_scales_alone),
        cmocka_unit_test(complete_blocks_are_kept),
        cmocka_unit_test(lost_rows_are_made_again),
        cmocka_unit_test(a_device_with_memory_of_its_own_changes_nothing),
        cmocka_unit_test(another_job_with_the_name_is_refused),
        cmocka_unit_test(all_that_a_target_cannot_carry_is_named),
        cmocka_unit_test(what_a_refusal_has_no_room_for_is_counted),
        cmocka_unit_test(what_is_told_of_the_allocation_names_no_jobs),
        cmocka_unit_test(an_allocation_is_for_the_weights_it_measured),
        cmocka_unit_test(an_artifact_of_another_model_is_refused),
        cmocka_unit_test(a_split_eval_reads_it_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
