/* An eval measures what the weights do and nothing else, and survives interruption bit for bit. */
#include "tests/unit/late_copies.h"
#include "tests/unit/run_job.h"
#include "tests/unit/tiny_copy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define HELDOUT FIXTURE "heldout.txt"
#define SPEC(more) "{'kind':'eval','model':'M','dataset':'D','length':128,'windows':6" more "}"
static const char rtn3[] = SPEC(",'uniform':{'method':'rtn','bits':3,'group':64}");
#define CALIBRATED(method, samples)                                                                                    \
    SPEC(",'uniform':{'method':'" method "','bits':3,'group':64},'calibration':{'dataset':'C','samples':" samples      \
         ",'length':64,'sampling':'sequential'}")

static double number(const struct run *r, const char *object, const char *member) {
    return json_number_value(json_object_get(json_object_get(r->result, object), member));
}

static void without_time(json_t *result) {
    json_object_del(result, "tokens_per_second");
    json_object_del(json_object_get(result, "refined"), "seconds");
}

static void model_against_itself_differs_by_nothing(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    must_run(&r, HELDOUT, SPEC(",'uniform':{'method':'none'}"), NULL);
    assert_true(number(&r, "kl", "max") == 0 && number(&r, "kl", "noise_floor") == 0);
    assert_true(number(&r, "rms_dp", "value") == 0 && number(&r, "rms_dp", "se") == 0);
    assert_true(number(&r, "delta", "ppl") == 0);
    assert_true(number(&r, "top1", "agreement") == 1);
    assert_true(number(&r, "windows", "helped") + number(&r, "windows", "hurt") == 0);
    run_release(&r);
}

static void damage_falls_with_bits(void **state) {
    (void)state;
    struct run eight, three;
    run_init(&eight);
    run_init(&three);
    must_run(&eight, HELDOUT, SPEC(",'uniform':{'method':'rtn','bits':8,'group':64}"), NULL);
    must_run(&three, HELDOUT, rtn3, NULL);
    assert_true(fabs(number(&eight, "delta", "percent")) < 0.1);
    assert_true(number(&eight, "kl", "mean") < 1e-3);
    assert_true(number(&three, "kl", "mean") > 20 * number(&eight, "kl", "mean"));
    assert_true(number(&three, "rms_dp", "value") > 5 * number(&eight, "rms_dp", "value"));
    assert_true(number(&eight, "rms_dp", "value") > 0 && number(&three, "rms_dp", "value") < 1);
    assert_true(number(&three, "reference", "nll") == number(&eight, "reference", "nll"));
    run_release(&eight);
    run_release(&three);
}

static void reference_alone_equals_reference_beside(void **state) {
    (void)state;
    struct run alone, beside;
    run_init(&alone);
    run_init(&beside);
    must_run(&alone, HELDOUT, SPEC(""), NULL);
    must_run(&beside, HELDOUT, rtn3, NULL);
    assert_true(number(&alone, "reference", "ppl") == number(&beside, "reference", "ppl"));
    static const char *const paired[] = {"quantized", "delta", "kl", "top1", "rms_dp"};
    for (size_t i = 0; i < sizeof paired / sizeof *paired; i++)
        assert_null(json_object_get(alone.result, paired[i]));
    run_release(&alone);
    run_release(&beside);
}

static void interrupted_eval_gives_the_same_result(void **state) {
    (void)state;
    for (int64_t stop = 1; stop < 9; stop += 3) {
        struct run whole, cut, rest;
        run_init(&whole);
        run_init(&cut);
        run_init(&rest);
        must_run(&whole, HELDOUT, rtn3, NULL);
        cut.stop_after = stop;
        assert_int_equal(run_job(&cut, FIXTURE "tiny", HELDOUT, rtn3, NULL, NULL), RC_UNAVAILABLE);
        must_run(&rest, HELDOUT, rtn3, cut.rows);
        assert_int_equal(json_array_size(cut.rows) + json_array_size(rest.rows), json_array_size(whole.rows));
        without_time(whole.result);
        without_time(rest.result);
        assert_true(json_equal(whole.result, rest.result));
        run_release(&whole);
        run_release(&cut);
        run_release(&rest);
    }
}

static double row_number(const json_t *row, const char *member) {
    return json_number_value(json_object_get(json_object_get(row, "data"), member));
}

/* Windows of two tokens score one: there a window's sums are the token's own values. */
static void rms_dp_is_of_the_true_tokens_probability(void **state) {
    (void)state;
    static const char spec[] = "{'kind':'eval','model':'M','dataset':'D','length':2,'windows':20,"
                               "'uniform':{'method':'rtn','bits':2,'group':64}}";
    struct run r;
    run_init(&r);
    must_run(&r, HELDOUT, spec, NULL);
    double sum = 0, squares = 0;
    size_t i;
    json_t *row;
    json_array_foreach(r.rows, i, row) {
        if (strcmp(json_string_value(json_object_get(row, "phase")), "window") != 0) continue;
        double dp2 = pow(exp(-row_number(row, "nll_quantized")) - exp(-row_number(row, "nll_reference")), 2);
        assert_true(fabs(row_number(row, "dp2") - dp2) <= 1e-12);
        sum += dp2;
        squares += dp2 * dp2;
    }
    double mean = sum / 20, se = sqrt((squares / 20 - mean * mean) / 19);
    assert_true(fabs(number(&r, "rms_dp", "value") - sqrt(mean)) <= 1e-9);
    assert_true(fabs(number(&r, "rms_dp", "se") - se / (2 * sqrt(mean))) <= 1e-9);
    run_release(&r);
}

/* How long a text is, in tokens, only the worker knows: its refusal says which member of the spec names that text. */
static void a_text_too_short_is_told_by_its_place(void **state) {
    (void)state;
    static const struct {
        const char *spec, *pointer;
    } cases[] = {
        {"{'kind':'eval','model':'M','dataset':'D','length':100000,'uniform':{'method':'none'}}", "/dataset"},
        {"{'kind':'eval','model':'M','dataset':'D','length':100000,'protocol':'llama.cpp','uniform':{'method':'none'}}",
         "/dataset"},
        {"{'kind':'sweep','model':'M','dataset':'D','length':100000,'candidate':{'method':'rtn','bits':3,'group':64}}",
         "/dataset"},
        {SPEC(",'uniform':{'method':'gptq','bits':3,'group':64},'calibration':{'dataset':'C','samples':9999,'length':"
              "64}"),
         "/calibration/dataset"},
        {"{'kind':'profile','model':'M','calibration':{'dataset':'D','samples':9999,'length':64},"
         "'candidates':[{'method':'rtn','bits':3,'group':64}]}",
         "/calibration/dataset"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run r;
        run_init(&r);
        if (run_job(&r, FIXTURE "tiny", HELDOUT, cases[i].spec, NULL, NULL) != RC_INVALID)
            fail_msg("%zu: %s", i, r.err.message);
        if (!strstr(r.err.message, "tokens")) fail_msg("%zu: %s", i, r.err.message);
        assert_string_equal(r.err.pointer, cases[i].pointer);
        run_release(&r);
    }
}

/* A device whose products come out a little different every time. */
static enum rc wavering_gemm(struct backend_state *state, const struct gemm_args *a, struct err *e) {
    static int calls;
    TRY(backend_cpu.gemm(state, a, e));
    *(float *)a->out.data += (float)++calls * 1e-3f;
    return RC_OK;
}

static void noise_floor_is_measured(void **state) {
    (void)state;
    struct backend wavering = backend_cpu;
    wavering.gemm = wavering_gemm;
    struct run r;
    run_init(&r);
    r.backend = &wavering;
    must_run(&r, HELDOUT, SPEC(",'uniform':{'method':'none'}"), NULL);
    double floor = number(&r, "kl", "noise_floor"), kl = number(&r, "kl", "mean");
    assert_true(floor > 0 && kl > 0);
    run_release(&r);
}

/* The cpu as if it were a device that takes four windows at a time, holds hidden states and loads ahead. */
static struct backend device_like(void) {
    struct backend b = backend_cpu;
    b.chunk_tokens = 4 * 128;
    b.own_memory = b.loads_ahead = true;
    return b;
}

static void windows_come_out_the_same_in_chunks(void **state) {
    (void)state;
    struct backend device = device_like();
    struct run single, chunked;
    run_init(&single);
    run_init(&chunked);
    chunked.backend = &device;
    must_run(&single, HELDOUT, rtn3, NULL);
    must_run(&chunked, HELDOUT, rtn3, NULL);
    static const char *const members[] = {"nll_reference", "nll_quantized", "kl"};
    assert_int_equal(json_array_size(single.rows), json_array_size(chunked.rows));
    for (size_t i = 0; i < json_array_size(single.rows); i++)
        for (size_t m = 0; m < sizeof members / sizeof *members; m++) {
            double one = row_number(json_array_get(single.rows, i), members[m]);
            assert_true(fabs(row_number(json_array_get(chunked.rows, i), members[m]) - one) <= 1e-5 * fabs(one));
        }
    run_release(&single);
    run_release(&chunked);
}

/* Room for all hidden states but so many … */
static int64_t slots_of_room;
static int64_t little_room(struct backend_state *state) {
    enum { HIDDEN = 128 };
    const int64_t reserve = 768 << 20, slot = (int64_t)128 * HIDDEN * (int64_t)sizeof(float);
    (void)state;
    return reserve + slots_of_room * slot;
}

/* … and copies of the others that go on beside the work: the same bits. */
static void hidden_states_that_do_not_fit_change_nothing(void **state) {
    (void)state;
    struct backend roomy = device_like(), narrow = with_late_copies(device_like());
    roomy.chunk_tokens = narrow.chunk_tokens = 128;
    narrow.room = little_room;
    struct run whole;
    run_init(&whole);
    whole.backend = &roomy;
    must_run(&whole, HELDOUT, rtn3, NULL);
    without_time(whole.result);
    for (slots_of_room = 0; slots_of_room < 12; slots_of_room++) {
        struct run r;
        run_init(&r);
        r.backend = &narrow;
        r.ram_limit = slots_of_room == 6 ? 100000 : 0; /* some in a file */
        late.beside = 0;
        must_run(&r, HELDOUT, rtn3, NULL);
        without_time(r.result);
        assert_true(json_equal(whole.rows, r.rows) && json_equal(whole.result, r.result));
        assert_true(slots_of_room < 2 || slots_of_room == 6 || late.beside > 0);
        run_release(&r);
    }
    run_release(&whole);
}

/* The first and last token of every chunk that was embedded; a chunk may be met again, but no other. */
static struct {
    int32_t ends[64][2];
    int count;
    bool closed;
} chunks;

static enum rc note_chunk(struct backend_state *state, const struct embed_args *a, struct err *e) {
    int32_t ends[2] = {a->ids[0], a->ids[a->out.rows - 1]};
    int i = 0;
    while (i < chunks.count && memcmp(chunks.ends[i], ends, sizeof ends) != 0)
        i++;
    if (i == chunks.count) {
        assert_false(chunks.closed);
        memcpy(chunks.ends[chunks.count++], ends, sizeof ends);
    }
    return backend_cpu.embed(state, a, e);
}

/* Whatever rows are there already, a window is computed in its place of its chunk. */
static void chunks_resume_bit_for_bit(void **state) {
    (void)state;
    struct backend device = device_like();
    device.embed = note_chunk;
    struct run whole;
    run_init(&whole);
    whole.backend = &device;
    must_run(&whole, HELDOUT, rtn3, NULL);
    without_time(whole.result);
    chunks.closed = true;
    for (int64_t stop = 1; stop < 13; stop += 2) {
        struct run cut, rest;
        run_init(&cut);
        run_init(&rest);
        cut.backend = rest.backend = &device;
        cut.stop_after = stop;
        assert_int_equal(run_job(&cut, FIXTURE "tiny", HELDOUT, rtn3, NULL, NULL), RC_UNAVAILABLE);
        must_run(&rest, HELDOUT, rtn3, cut.rows);
        without_time(rest.result);
        assert_true(json_equal(whole.result, rest.result));
        run_release(&cut);
        run_release(&rest);
    }
    run_release(&whole);
}

/* A device whose loads are under way until they are waited for: nothing may go that they read or write. */
static atomic_bool *cancelled_when_loading;
static int loads_under_way, loads_begun, last_load;

static enum rc begin_load(struct backend_state *state, const struct load_item *items, size_t count, struct err *e) {
    loads_under_way = 1;
    if (++loads_begun == last_load) atomic_store(cancelled_when_loading, true);
    return backend_cpu.load(state, items, count, e);
}

static enum rc end_load(struct backend_state *state, struct err *e) {
    loads_under_way = 0;
    return backend_cpu.loaded(state, e);
}

static void free_what_is_at_rest(struct backend_state *state, void *memory) {
    assert_false(loads_under_way);
    backend_cpu.free(state, memory);
}

static void cancel_waits_for_what_is_being_loaded(void **state) {
    (void)state;
    struct backend device = device_like();
    device.load = begin_load;
    device.loaded = end_load;
    device.free = free_what_is_at_rest;
    for (last_load = 2; last_load < 8; last_load++) {
        struct run r;
        run_init(&r);
        r.backend = &device;
        cancelled_when_loading = &r.cancelled;
        loads_begun = 0;
        assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, rtn3, NULL, NULL), RC_CANCELLED);
        assert_true(loads_begun >= last_load);
        run_release(&r);
    }
}

/* Rows of an older version, or of another eval, are not read as zeros. */
static void earlier_rows_must_be_complete(void **state) {
    (void)state;
    static const char *const members[] = {"nll_reference", "nll_quantized", "kl", "top1_agree", "dp2", "kl_abs"};
    struct run whole;
    run_init(&whole);
    must_run(&whole, HELDOUT, rtn3, NULL);
    for (size_t m = 0; m < sizeof members / sizeof *members; m++) {
        struct run again;
        run_init(&again);
        json_t *rows = json_deep_copy(whole.rows), *row;
        size_t i;
        json_array_foreach(rows, i, row) if (json_is_number(json_object_get(json_object_get(row, "data"), members[m])))
            json_object_del(json_object_get(row, "data"), members[m]);
        assert_int_equal(run_job(&again, FIXTURE "tiny", HELDOUT, rtn3, rows, NULL), RC_INVALID);
        assert_non_null(strstr(again.err.message, "stored row"));
        json_decref(rows);
        run_release(&again);
    }
    run_release(&whole);
}

static void allocation_is_applied_by_name(void **state) {
    (void)state;
    struct run r;
    run_init(&r);
    static const char spec[] = SPEC(",'allocation':'A'");
    json_t *inputs = json_pack("{s{s{s[{ss ss}]}}}", "allocation", "result", "assignment", "name",
                               "model.layers.9.self_attn.q_proj", "candidate", "rtn3g64");
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, inputs), RC_INVALID);
    assert_string_equal(r.err.pointer, "/allocation");
    json_decref(inputs);
    inputs = json_pack("{s{s{s[{ss ss}]}}}", "allocation", "result", "assignment", "name",
                       "model.layers.1.self_attn.q_proj", "candidate", "rtn2g64");
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, inputs), RC_OK);
    assert_true(number(&r, "kl", "mean") > 0);
    json_decref(inputs);
    run_release(&r);
}

/* An eval of a prediction's allocation says how it turned out; of any other recipe nothing. */
static void prediction_stands_beside_the_measurement(void **state) {
    (void)state;
    static const char spec[] = SPEC(",'allocation':'A'"), member[] = "prediction";
    struct run r;
    run_init(&r);
    json_t *inputs = json_pack("{s{s{s[{ss ss}] s{sf sf sf}}}}", "allocation", "result", "assignment", "name",
                               "model.layers.1.self_attn.q_proj", "candidate", "rtn2g64", "prediction", "kl", 0.25,
                               "low", 0.2, "high", 0.3);
    json_t *result = json_object_get(json_object_get(inputs, "allocation"), "result");
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, inputs), RC_OK);
    assert_int_equal(json_integer_value(json_object_get(r.result, "bytes")), 128 * 128 * 2 / 8 + 128 * 2 * 4);
    assert_true(number(&r, member, "kl") == 0.25 && number(&r, member, "low") == 0.2);
    assert_true(number(&r, member, "high") == 0.3 && number(&r, member, "measured") == number(&r, "kl", "mean"));
    assert_true(number(&r, "kl", "mean") > 0 && number(&r, member, "ratio") == 4 * number(&r, "kl", "mean"));
    json_object_set_new(result, member, json_null());
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, inputs), RC_OK);
    assert_null(json_object_get(r.result, member));
    json_decref(inputs);
    must_run(&r, HELDOUT, rtn3, NULL);
    assert_null(json_object_get(r.result, member));
    run_release(&r);
}

static void compare_pairs_with_an_earlier_eval(void **state) {
    (void)state;
    struct run before, after;
    run_init(&before);
    run_init(&after);
    must_run(&before, HELDOUT, rtn3, NULL);
    json_t *inputs = json_pack("{s{sO sO}}", "compare", "result", before.result, "rows", before.rows);
    static const char same[] = SPEC(",'uniform':{'method':'rtn','bits':3,'group':64},'compare':'J'");
    assert_int_equal(run_job(&after, FIXTURE "tiny", HELDOUT, same, NULL, inputs), RC_OK);
    assert_true(number(&after, "compare", "nll") == 0);
    static const char shorter[] = "{'kind':'eval','model':'M','dataset':'D','length':64,'windows':6,'compare':'J'}";
    size_t rows = json_array_size(after.rows);
    assert_int_equal(run_job(&after, FIXTURE "tiny", HELDOUT, shorter, NULL, inputs), RC_INVALID);
    assert_string_equal(after.err.pointer, "/compare");
    assert_int_equal(run_job(&after, FIXTURE "tiny", FIXTURE "calibration.txt", same, NULL, inputs), RC_INVALID);
    assert_non_null(strstr(after.err.message, "evaluated other windows")); /* as many, of another text */
    assert_int_equal(json_array_size(after.rows), rows);                   /* refused before anything was computed */
    json_decref(inputs);
    run_release(&before);
    run_release(&after);
}

/* Where no token begins a text, both protocols cut the same windows; what they score of them differs. */
static void a_comparison_across_protocols_is_refused_at_once(void **state) {
    (void)state;
    static const char windows[] = "{'kind':'eval','model':'M','dataset':'D','length':64,'windows':2";
    struct scratch model = tiny_copy();
    char spec[256];
    struct run before, after;
    run_init(&before);
    run_init(&after);
    json_t *tokenizer = json_load_file(TINY "tokenizer.json", 0, NULL);
    json_object_set_new(tokenizer, "post_processor", json_null());
    char *text = json_dumps(tokenizer, 0);
    scratch_write(&model, "tokenizer.json", text, strlen(text));
    snprintf(spec, sizeof spec, "%s}", windows);
    assert_int_equal(run_job(&before, model.path, HELDOUT, spec, NULL, NULL), RC_OK);
    json_t *inputs = json_pack("{s{sO sO}}", "compare", "result", before.result, "rows", before.rows);
    snprintf(spec, sizeof spec, "%s,'protocol':'llama.cpp','compare':'J'}", windows);
    assert_int_equal(run_job(&after, model.path, HELDOUT, spec, NULL, inputs), RC_INVALID);
    assert_string_equal(after.err.pointer, "/compare");
    assert_non_null(strstr(after.err.message, "use the same protocol"));
    assert_int_equal(json_array_size(after.rows), 0);
    json_decref(inputs);
    json_decref(tokenizer);
    free(text);
    run_release(&before);
    run_release(&after);
    scratch_close(&model);
}

static const json_t *calibration_of(const struct run *r) {
    return json_object_get(r->result, "calibration");
}

/* What GPTQ and AWQ are for: less damage at the same bits. The result says what was done. */
static void calibration_pays(void **state) {
    (void)state;
    static const char *const specs[] = {CALIBRATED("gptq", "48"), CALIBRATED("awq", "48"),
                                        CALIBRATED("awq+gptq", "48")};
    struct run plain;
    run_init(&plain);
    must_run(&plain, HELDOUT, rtn3, NULL);
    assert_null(calibration_of(&plain));
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        struct run r;
        run_init(&r);
        must_run(&r, HELDOUT, specs[i], NULL);
        assert_true(number(&r, "kl", "mean") < 0.8 * number(&plain, "kl", "mean"));
        assert_true(number(&r, "reference", "nll") == number(&plain, "reference", "nll"));
        assert_true(number(&r, "calibration", "tokens") == 48 * 64 && number(&r, "calibration", "moved") == 0);
        assert_true(json_is_true(json_object_get(calibration_of(&r), "sequential")) == (i != 1));
        const json_t *linears = json_object_get(calibration_of(&r), "linears");
        assert_int_equal(json_array_size(linears), 6 * 7);
        assert_string_equal(json_string_value(json_object_get(json_array_get(linears, 0), "name")),
                            "model.layers.0.self_attn.q_proj");
        run_release(&r);
    }
    run_release(&plain);
}

/* Packed on the host, and brought to a device with memory of its own: the same weights. */
static void calibrated_weights_reach_a_device(void **state) {
    (void)state;
    static const char *const specs[] = {CALIBRATED("gptq", "2"), CALIBRATED("awq", "2")};
    struct backend device = backend_cpu;
    device.own_memory = device.loads_ahead = true;
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        struct run here, there;
        run_init(&here);
        run_init(&there);
        there.backend = &device;
        must_run(&here, HELDOUT, specs[i], NULL);
        must_run(&there, HELDOUT, specs[i], NULL);
        assert_true(json_equal(here.rows, there.rows));
        run_release(&here);
        run_release(&there);
    }
}

/* Killed while it calibrates, between windows, or after the last one. */
static void stop_and_go_on(const char *spec, int count) {
    struct run whole;
    run_init(&whole);
    must_run(&whole, HELDOUT, spec, NULL);
    without_time(whole.result);
    int64_t rows = (int64_t)json_array_size(whole.rows);
    const int64_t stops[] = {5, rows - 3, 6 * 7, rows};
    for (int i = 0; i < count; i++) {
        int64_t stop = stops[i];
        struct run cut, rest;
        run_init(&cut);
        run_init(&rest);
        cut.stop_after = stop;
        enum rc rc = run_job(&cut, FIXTURE "tiny", HELDOUT, spec, NULL, NULL);
        assert_int_equal(rc, stop < rows ? RC_UNAVAILABLE : RC_OK);
        must_run(&rest, HELDOUT, spec, cut.rows);
        without_time(rest.result);
        assert_true(json_equal(whole.result, rest.result));
        assert_int_equal(json_array_size(cut.rows) + json_array_size(rest.rows), rows);
        assert_true((rest.progress == 0) == (stop == rows));
        run_release(&cut);
        run_release(&rest);
    }
    run_release(&whole);
}

static void interrupted_calibration_gives_the_same_result(void **state) {
    (void)state;
    stop_and_go_on(CALIBRATED("gptq", "2"), 4);
    stop_and_go_on(CALIBRATED("gptq','guided':true,'range':'weighted", "2"), 4); /* from the last block */
    stop_and_go_on(CALIBRATED("gptq','guided':true,'two_sided':true,'range':'weighted", "2"), 1);
    stop_and_go_on(CALIBRATED("awq+gptq", "2"), 2); /* its search takes five times as long as all else */
}

static json_t *allocation_of(const char *name, const char *candidate, json_t *calibration) {
    return json_pack("{s{s{s[{ss ss}] so*}}}", "allocation", "result", "assignment", "name", name, "candidate",
                     candidate, "calibration", calibration);
}

/* Of the profile behind it, unless the spec has another; an allocation that needs none asks for none. */
static void allocation_brings_its_calibration(void **state) {
    (void)state;
    static const char spec[] = SPEC(",'allocation':'A'"), name[] = "model.layers.1.mlp.down_proj";
    static const char own[] = SPEC(",'allocation':'A','calibration':{'dataset':'C','samples':2,'length':64}");
    json_t *calibration = json_pack("{ss ss sI sI ss sI sI ss}", "dataset", "C", "sha256", "5a", "samples",
                                    (json_int_t)3, "length", (json_int_t)64, "sampling", "random", "seed",
                                    (json_int_t)5, "tokens", (json_int_t)192, "windows_hash", "");
    json_t *inputs = allocation_of(name, "gptq3g64", calibration), *bare = allocation_of(name, "gptq3g64", NULL);
    json_t *light = allocation_of(name, "rtn3g64", NULL);
    struct run r;
    run_init(&r);
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, inputs), RC_OK);
    assert_true(number(&r, "calibration", "samples") == 3 && number(&r, "calibration", "seed") == 5);
    assert_int_equal(json_array_size(json_object_get(calibration_of(&r), "linears")), 1);
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, own, NULL, inputs), RC_OK);
    assert_true(number(&r, "calibration", "samples") == 2);
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, light), RC_OK);
    assert_null(calibration_of(&r));
    assert_int_equal(run_job(&r, FIXTURE "tiny", HELDOUT, spec, NULL, bare), RC_INVALID);
    assert_string_equal(r.err.pointer, "/calibration");
    json_decref(inputs);
    json_decref(bare);
    json_decref(light);
    run_release(&r);
}

/* lm_head beside the blocks, scaled through the final norm that only the quantized stream sees. */
static void calibrated_head_is_evaluated(void **state) {
    (void)state;
    static const char spec[] = SPEC(",'allocation':'A','calibration':{'dataset':'C','samples':4,'length':64}");
    struct run awq, rtn;
    run_init(&awq);
    run_init(&rtn);
    json_t *inputs = allocation_of("lm_head", "awq8g64", NULL), *plain = allocation_of("lm_head", "rtn8g64", NULL);
    assert_int_equal(run_job(&awq, FIXTURE "tiny", HELDOUT, spec, NULL, inputs), RC_OK);
    assert_int_equal(run_job(&rtn, FIXTURE "tiny", HELDOUT, spec, NULL, plain), RC_OK);
    assert_true(number(&awq, "kl", "mean") > 0);
    assert_true(number(&awq, "kl", "mean") < 2 * number(&rtn, "kl", "mean"));
    json_decref(inputs);
    json_decref(plain);
    run_release(&awq);
    run_release(&rtn);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_against_itself_differs_by_nothing),
        cmocka_unit_test(damage_falls_with_bits),
        cmocka_unit_test(reference_alone_equals_reference_beside),
        cmocka_unit_test(interrupted_eval_gives_the_same_result),
        cmocka_unit_test(rms_dp_is_of_the_true_tokens_probability),
        cmocka_unit_test(a_text_too_short_is_told_by_its_place),
        cmocka_unit_test(noise_floor_is_measured),
        cmocka_unit_test(windows_come_out_the_same_in_chunks),
        cmocka_unit_test(hidden_states_that_do_not_fit_change_nothing),
        cmocka_unit_test(chunks_resume_bit_for_bit),
        cmocka_unit_test(cancel_waits_for_what_is_being_loaded),
        cmocka_unit_test(earlier_rows_must_be_complete),
        cmocka_unit_test(allocation_is_applied_by_name),
        cmocka_unit_test(calibration_pays),
        cmocka_unit_test(calibrated_weights_reach_a_device),
        cmocka_unit_test(interrupted_calibration_gives_the_same_result),
        cmocka_unit_test(allocation_brings_its_calibration),
        cmocka_unit_test(calibrated_head_is_evaluated),
        cmocka_unit_test(prediction_stands_beside_the_measurement),
        cmocka_unit_test(compare_pairs_with_an_earlier_eval),
        cmocka_unit_test(a_comparison_across_protocols_is_refused_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
