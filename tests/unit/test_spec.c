#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/spec.h"

#define PROFILE "\"kind\":\"profile\",\"model\":\"M\",\"calibration\":{\"dataset\":\"D\"}"
#define CANDIDATES "\"candidates\":[{\"method\":\"hqq\",\"bits\":[2,4]}]"
#define GUIDED "\"candidates\":[{\"method\":\"gptq\",\"bits\":4,\"guided\":[false,true]}]"
#define ALLOCATION "\"kind\":\"allocation\",\"profile\":\"J\""
#define BUDGET "\"budget\":{\"average_bits\":3.3}"
#define EVAL "\"kind\":\"eval\",\"model\":\"M\",\"dataset\":\"D\""
#define QUANTIZE "\"kind\":\"quantize\",\"model\":\"M\",\"name\":\"M-4bit.v1\""
#define SWEEP "\"kind\":\"sweep\",\"model\":\"M\",\"dataset\":\"D\""
#define UNIFORM "\"uniform\":{\"method\":\"rtn\",\"bits\":4}"

struct fixture {
    struct arena arena;
    struct problems problems;
    union spec spec;
    const struct job_kind *kind;
    struct err e;
};

static enum rc decode(struct fixture *f, const char *text) {
    *f = (struct fixture){0};
    json_t *value = NULL;
    assert_int_equal(json_parse(text, strlen(text), &value, &f->e), RC_OK);
    enum rc rc = spec_decode(value, &f->spec, &f->kind, &f->arena, &f->problems, &f->e);
    json_decref(value);
    return rc;
}

static void expect_ok(struct fixture *f, const char *text) {
    if (decode(f, text) != RC_OK) fail_msg("refused %s: %s %s", text, f->e.pointer, f->e.message);
}

static void profile_has_the_documented_defaults(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" PROFILE "," CANDIDATES "}");
    const struct spec_profile *profile = &f.spec.profile;
    assert_string_equal(f.kind->name, "profile");
    assert_int_equal(f.kind->lane, LANE_DEVICE);
    assert_int_equal(profile->calibration->samples, 128);
    assert_int_equal(profile->calibration->length, 2048);
    assert_int_equal(profile->calibration->sampling, SAMPLING_RANDOM);
    assert_int_equal(profile->calibration->seed, 0);
    assert_int_equal(profile->candidates.count, 2);
    assert_int_equal(profile->scores.count, 1);
    assert_string_equal(((const char **)profile->scores.items)[0], "drift");
    assert_false(spec_wants(profile, "fisher") || spec_wants_loss(profile));
    assert_int_equal(profile->fisher_windows, 16);
    assert_null(profile->layers);
    assert_false(profile->head);
    assert_int_equal(profile->common.priority, 0);
    assert_null(profile->common.label);
    assert_string_equal(spec_model(f.kind, &f.spec), "M");
    assert_string_equal(spec_dataset(f.kind, &f.spec), "D");
    assert_null(profile->sweep);
    assert_null(profile->around);
    arena_release(&f.arena);
}

static void allocation_has_the_documented_defaults(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" ALLOCATION ",\"budget\":{\"vram\":\"12GiB\"}}");
    const struct spec_budget *budget = f.spec.allocation.budget;
    assert_int_equal(f.kind->lane, LANE_CPU);
    assert_true(budget->has_vram && !budget->has_weights && !budget->has_average_bits);
    assert_int_equal(budget->vram, 12884901888);
    assert_int_equal(budget->context, 4096);
    assert_int_equal(budget->batch, 1);
    assert_int_equal(budget->kv_bits, 16);
    assert_int_equal(budget->reserve, 0);
    assert_false(f.spec.allocation.has_score);
    assert_null(f.spec.allocation.sweep);
    assert_int_equal(f.spec.allocation.method, ALLOCATION_OPTIMAL);
    assert_null(spec_model(f.kind, &f.spec));
    assert_null(spec_dataset(f.kind, &f.spec));
    arena_release(&f.arena);
}

#define GPTQ ",\"uniform\":{\"method\":\"gptq\",\"bits\":4,\"group\":64}"
#define RTN ",\"uniform\":{\"method\":\"rtn\",\"bits\":4,\"group\":64}"
#define ON_C ",\"calibration\":{\"dataset\":\"C\"}"

/* Needed where it is looked at, and nowhere else; of an allocation nobody knows yet. */
static void eval_calibrates_where_a_candidate_needs_it(void **state) {
    (void)state;
    struct fixture f;
    static const char *const good[] = {"{" EVAL GPTQ ON_C "}", "{" EVAL ",\"allocation\":\"J\"" ON_C "}"};
    static const char *const refused[] = {"{" EVAL GPTQ "}", "{" EVAL RTN ON_C "}", "{" EVAL ON_C "}"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        expect_ok(&f, good[i]);
        assert_string_equal(spec_calibration_dataset(f.kind, &f.spec), "C");
        assert_string_equal(spec_dataset(f.kind, &f.spec), "D");
        assert_int_equal(f.spec.eval.calibration->samples, 128);
        arena_release(&f.arena);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(decode(&f, refused[i]), RC_INVALID);
        assert_string_equal(f.problems.items[0].pointer, "/calibration");
        arena_release(&f.arena);
    }
    expect_ok(&f, "{" EVAL ",\"allocation\":\"J\"}");
    assert_null(spec_calibration_dataset(f.kind, &f.spec));
    arena_release(&f.arena);
    expect_ok(&f, "{" PROFILE "," CANDIDATES "}");
    assert_null(spec_calibration_dataset(f.kind, &f.spec));
    arena_release(&f.arena);
}

/* Scales are refined on it, whatever the candidates look at; and only where there are any. */
static void refining_needs_a_calibration(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" EVAL GPTQ ON_C "}");
    assert_false(f.spec.eval.has_refine || spec_refines(f.kind, &f.spec));
    arena_release(&f.arena);
    expect_ok(&f, "{" EVAL GPTQ ON_C ",\"refine\":false}");
    assert_true(f.spec.eval.has_refine && !spec_refines(f.kind, &f.spec));
    arena_release(&f.arena);
    static const char *const asked[] = {"{" EVAL RTN ON_C ",\"refine\":true}",
                                        "{" QUANTIZE RTN ON_C ",\"refine\":true}",
                                        "{" EVAL ",\"allocation\":\"J\",\"refine\":true}"};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        expect_ok(&f, asked[i]);
        assert_true(spec_refines(f.kind, &f.spec));
        arena_release(&f.arena);
    }
    static const char *const refused[][2] = {
        {"{" EVAL RTN ",\"refine\":true}", "/calibration"},
        {"{" EVAL RTN ON_C ",\"refine\":false}", "/calibration"},
        {"{" EVAL ",\"refine\":true}", "/refine"},
        {"{" EVAL ",\"artifact\":\"A\",\"refine\":true}", "/refine"},
        {"{" EVAL ",\"uniform\":{\"method\":\"fp8\"}" ON_C ",\"refine\":true}", "/refine"},
        {"{" QUANTIZE RTN ON_C ",\"refine\":1}", "/refine"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(decode(&f, refused[i][0]), RC_INVALID);
        assert_string_equal(f.problems.items[0].pointer, refused[i][1]);
        arena_release(&f.arena);
    }
}

static void eval_length_follows_the_protocol(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" EVAL "}");
    assert_int_equal(f.spec.eval.length, 2048);
    assert_int_equal(f.spec.eval.windows, 0);
    assert_string_equal(spec_dataset(f.kind, &f.spec), "D");
    arena_release(&f.arena);
    expect_ok(&f, "{" EVAL ",\"protocol\":\"llama.cpp\",\"windows\":null}");
    assert_int_equal(f.spec.eval.length, 512);
    arena_release(&f.arena);
    expect_ok(&f, "{" EVAL ",\"protocol\":\"llama.cpp\",\"length\":1024}");
    assert_int_equal(f.spec.eval.length, 1024);
    arena_release(&f.arena);
}

static void sweep_has_the_documented_defaults(void **state) {
    (void)state;
    struct fixture f;
    const struct spec_sweep *sweep = &f.spec.sweep;
    char id[CANDIDATE_ID_SIZE];
    expect_ok(&f, "{" SWEEP "}");
    assert_int_equal(f.kind->lane, LANE_DEVICE);
    assert_string_equal(candidate_id(sweep->candidate, id), "hqq3g64");
    assert_int_equal(sweep->length, 2048);
    assert_int_equal(sweep->windows, 8);
    assert_false(sweep->has_noise);
    assert_null(sweep->layers);
    assert_string_equal(spec_model(f.kind, &f.spec), "M");
    assert_string_equal(spec_dataset(f.kind, &f.spec), "D");
    assert_null(spec_calibration_dataset(f.kind, &f.spec));
    arena_release(&f.arena);
    expect_ok(&f, "{" SWEEP ",\"noise\":0.1}");
    assert_true(sweep->candidate == NULL && sweep->has_noise && sweep->noise == 0.1 && sweep->seed == 0);
    arena_release(&f.arena);
    expect_ok(&f, "{" SWEEP ",\"candidate\":{\"method\":\"gptq\",\"bits\":3,\"group\":64}" ON_C "}");
    assert_string_equal(spec_calibration_dataset(f.kind, &f.spec), "C");
    arena_release(&f.arena);
}

static void rules_are_decoded(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" ALLOCATION "," BUDGET ",\"rules\":[{\"match\":\"o_proj$\",\"min_bits\":4,\"max_bits\":8},"
                  "{\"match\":\"x\",\"pin\":{\"method\":\"none\"}},{\"first\":2,\"last\":2,\"min_bits\":8},"
                  "{\"tie\":[\"q_proj\",\"k_proj\"]}]}");
    const struct spec_rule *rules = f.spec.allocation.rules.items;
    assert_int_equal(f.spec.allocation.rules.count, 4);
    assert_true(rules[0].has_min_bits && rules[0].has_max_bits && !rules[0].has_first);
    assert_int_equal(rules[1].pin->method, METHOD_NONE);
    assert_int_equal(rules[2].last, 2);
    assert_int_equal(rules[3].tie.count, 2);
    arena_release(&f.arena);
}

static void common_members_fit_every_kind(void **state) {
    (void)state;
    static const char *const specs[] = {PROFILE "," CANDIDATES, ALLOCATION "," BUDGET, EVAL, QUANTIZE "," UNIFORM,
                                        SWEEP};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        struct fixture f;
        char text[512];
        snprintf(text, sizeof text, "{%s,\"label\":\"l\",\"priority\":-100,\"after\":[\"a\",\"b\"],\"device\":\"cpu\"}",
                 specs[i]);
        expect_ok(&f, text);
        assert_string_equal(f.spec.common.kind, f.kind->name);
        assert_string_equal(f.spec.common.label, "l");
        assert_int_equal(f.spec.common.priority, -100);
        assert_int_equal(f.spec.common.after.count, 2);
        assert_string_equal(f.spec.common.device, "cpu");
        arena_release(&f.arena);
    }
}

static void references_name_jobs_of_a_kind(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" EVAL ",\"allocation\":\"A\",\"compare\":\"E\"}");
    const struct spec_reference *references = f.kind->references;
    assert_string_equal(references[0].kind, "allocation");
    assert_string_equal(*(const char **)((char *)&f.spec + references[0].offset), "A");
    assert_string_equal(references[1].kind, "eval");
    assert_string_equal(*(const char **)((char *)&f.spec + references[1].offset), "E");
    assert_null(references[2].member);
    arena_release(&f.arena);
}

static const char *sweep_of(const struct fixture *f) {
    for (const struct spec_reference *r = f->kind->references; r->member; r++)
        if (strcmp(r->member, "sweep") == 0 && strcmp(r->kind, "sweep") == 0 && r->rows)
            return *(const char *const *)((const char *)&f->spec + r->offset);
    return NULL;
}

static void a_sweep_comes_with_its_rows(void **state) {
    (void)state;
    static const char *const names[] = {"drift", "error", "fisher", "kfac", "diag", "noise", "delta_kl"};
    struct fixture f;
    expect_ok(&f, "{" PROFILE "," CANDIDATES ",\"sweep\":\"S\"}");
    assert_string_equal(sweep_of(&f), "S");
    arena_release(&f.arena);
    for (int score = 0; score < SCORES; score++) {
        char text[256];
        snprintf(text, sizeof text, "{" ALLOCATION "," BUDGET ",\"sweep\":\"S\",\"score\":\"%s\"}", names[score]);
        expect_ok(&f, text);
        assert_string_equal(sweep_of(&f), "S");
        assert_true(f.spec.allocation.has_score && f.spec.allocation.score == score);
        arena_release(&f.arena);
    }
}

static void an_artifacts_name_is_one_folder(void **state) {
    (void)state;
    static const char *const bad[] = {"", ".", "..", ".hidden", "a/b", "/a", "a b", "a\\\\b", "\u00e4"};
    char text[512];
    struct fixture f;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "{\"kind\":\"quantize\",\"model\":\"M\",\"name\":\"%s\"," UNIFORM "}", bad[i]);
        if (decode(&f, text) != RC_INVALID) fail_msg("accepted: %s", text);
        assert_string_equal(f.e.pointer, "/name");
        arena_release(&f.arena);
    }
    for (int len = 128; len <= 129; len++) {
        snprintf(text, sizeof text, "{\"kind\":\"quantize\",\"model\":\"M\",\"name\":\"%0*d\"," UNIFORM "}", len, 0);
        assert_int_equal(decode(&f, text), len == 128 ? RC_OK : RC_INVALID);
        arena_release(&f.arena);
    }
}

static void quantize_names_what_it_reads_and_makes(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" QUANTIZE ",\"allocation\":\"J\",\"calibration\":{\"dataset\":\"C\"}}");
    assert_string_equal(spec_model(f.kind, &f.spec), "M");
    assert_null(spec_dataset(f.kind, &f.spec));
    assert_string_equal(spec_calibration_dataset(f.kind, &f.spec), "C");
    assert_string_equal(spec_allocation(f.kind, &f.spec), "J");
    assert_string_equal(spec_made_artifact(f.kind, &f.spec), "M-4bit.v1");
    assert_null(spec_read_artifact(f.kind, &f.spec));
    assert_false(f.spec.quantize.has_target);
    arena_release(&f.arena);
    expect_ok(&f, "{" EVAL ",\"artifact\":\"A\"}");
    assert_string_equal(spec_read_artifact(f.kind, &f.spec), "A");
    assert_null(spec_made_artifact(f.kind, &f.spec));
    arena_release(&f.arena);
}

struct fault {
    const char *text, *pointer;
};

/* Each is the spec's only one. */
static void check_faults(const struct fault *cases, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct fixture f;
        json_t *value = json_loads(cases[i].text, 0, NULL); /* the last one repeats a key: the later value counts */
        f = (struct fixture){0};
        if (spec_decode(value, &f.spec, &f.kind, &f.arena, &f.problems, &f.e) != RC_INVALID)
            fail_msg("accepted: %s", cases[i].text);
        assert_int_equal(f.problems.count, 1);
        assert_string_equal(f.problems.items[0].pointer, cases[i].pointer);
        assert_string_equal(f.e.pointer, cases[i].pointer);
        json_decref(value);
        arena_release(&f.arena);
    }
}

static bool asks_for(const struct fixture *f, const char *score) {
    return spec_wants(&f->spec.profile, score);
}

/* Candidates that walk the gradients anyway are scored by them. */
static void a_profile_of_nothing_but_a_model_is_guided(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" PROFILE "}");
    const struct list *candidates = &f.spec.profile.candidates;
    const struct candidate *all = candidates->items;
    char id[CANDIDATE_ID_SIZE];
    assert_int_equal(candidates->count, 18);
    assert_string_equal(candidate_id(&all[0], id), "gptq2g32-guided-twosided");
    assert_string_equal(candidate_id(&all[17], id), "gptq8g128-guided-twosided");
    assert_true(asks_for(&f, "drift") && asks_for(&f, "fisher") && !asks_for(&f, "kfac"));
    arena_release(&f.arena);
    expect_ok(&f, "{" PROFILE "," CANDIDATES "}");
    assert_true(asks_for(&f, "drift") && !asks_for(&f, "fisher"));
    arena_release(&f.arena);
    expect_ok(&f, "{" PROFILE "," GUIDED ",\"scores\":[\"drift\"]}");
    assert_false(asks_for(&f, "fisher"));
    arena_release(&f.arena);
}

/* A second round has no other use. */
static void a_profile_around_an_allocation_is_scored_by_gradients(void **state) {
    (void)state;
    struct fixture f;
    expect_ok(&f, "{" PROFILE "," CANDIDATES ",\"around\":\"J\"}");
    assert_string_equal(f.spec.profile.around, "J");
    assert_true(asks_for(&f, "drift") && asks_for(&f, "fisher"));
    arena_release(&f.arena);
    expect_ok(&f, "{" PROFILE "," CANDIDATES ",\"around\":\"J\",\"scores\":[\"diag\"],\"devices\":\"all\"}");
    assert_false(asks_for(&f, "fisher"));
    arena_release(&f.arena);
}

/* What an allocation has from a sweep is none of a profile's. */
static void a_profile_says_where_other_scores_come_from(void **state) {
    (void)state;
    static const char *const names[] = {"noise", "delta_kl"};
    for (size_t i = 0; i < 2; i++) {
        char text[256];
        struct fixture f;
        snprintf(text, sizeof text, "{" PROFILE "," CANDIDATES ",\"scores\":[\"%s\"]}", names[i]);
        assert_int_equal(decode(&f, text), RC_INVALID);
        assert_non_null(strstr(f.e.message, "run a sweep, and name it in the allocation"));
        arena_release(&f.arena);
    }
}

static void every_fault_has_its_pointer(void **state) {
    (void)state;
    static const struct fault cases[] = {
        {"[]", ""},
        {"{}", "/kind"},
        {"{\"kind\":7}", "/kind"},
        {"{\"kind\":\"divergence\"}", "/kind"},
        {"{" PROFILE ",\"head\":true}", "/head"},
        {"{" PROFILE "," CANDIDATES ",\"scores\":[\"drift\",\"noise\"]}", "/scores/1"},
        {"{" PROFILE "," CANDIDATES ",\"scores\":[\"kfac\"],\"head\":true}", "/head"},
        {"{" PROFILE "," CANDIDATES ",\"scores\":[\"diag\"],\"head\":true}", "/head"},
        {"{" PROFILE "," CANDIDATES ",\"scores\":[\"fisher\"],\"head\":true}", "/head"},
        {"{" PROFILE "," GUIDED ",\"head\":true}", "/head"},
        {"{" PROFILE "," CANDIDATES ",\"around\":\"J\",\"head\":true}", "/head"},
        {"{" PROFILE "," CANDIDATES ",\"around\":\"J\",\"scores\":[\"drift\",\"error\"]}", "/around"},
        {"{" PROFILE "," GUIDED ",\"around\":\"J\",\"scores\":[\"drift\"]}", "/around"},
        {"{" PROFILE "," CANDIDATES ",\"around\":7}", "/around"},
        {"{" PROFILE "," CANDIDATES ",\"fisher_windows\":0}", "/fisher_windows"},
        {"{" PROFILE "," CANDIDATES ",\"scores\":[]}", "/scores"},
        {"{" PROFILE "," CANDIDATES ",\"layers\":\"[\"}", "/layers"},
        {"{" PROFILE "," CANDIDATES ",\"priority\":101}", "/priority"},
        {"{" PROFILE "," CANDIDATES ",\"after\":[1]}", "/after/0"},
        {"{" PROFILE "," CANDIDATES ",\"head\":1}", "/head"},
        {"{" PROFILE ",\"candidates\":[{\"method\":\"rtn\",\"bits\":[2,9]}]}", "/candidates/0/bits/1"},
        {"{\"kind\":\"profile\",\"model\":\"M\",\"calibration\":{\"dataset\":\"D\",\"samples\":0}," CANDIDATES "}",
         "/calibration/samples"},
        {"{\"kind\":\"profile\",\"model\":\"M\",\"calibration\":{}," CANDIDATES "}", "/calibration/dataset"},
        {"{\"kind\":\"profile\",\"model\":\"M\",\"calibration\":{\"dataset\":\"C\",\"length\":1}," CANDIDATES "}",
         "/calibration/length"},
        {"{" ALLOCATION "}", "/budget"},
        {"{" ALLOCATION ",\"budget\":{}}", "/budget"},
        {"{" ALLOCATION ",\"budget\":{\"vram\":1,\"weights\":1}}", "/budget"},
        {"{" ALLOCATION ",\"budget\":{\"weights\":\"much\"}}", "/budget/weights"},
        {"{" ALLOCATION ",\"budget\":{\"average_bits\":0.5}}", "/budget/average_bits"},
        {"{" ALLOCATION "," BUDGET ",\"score\":\"loss\"}", "/score"},
        {"{" ALLOCATION "," BUDGET ",\"score\":\"delta_kl\"}", "/sweep"},
        {"{" ALLOCATION "," BUDGET ",\"score\":\"noise\"}", "/sweep"},
        {"{" ALLOCATION "," BUDGET ",\"rules\":[{\"min_bits\":4}]}", "/rules/0"},
        {"{" ALLOCATION "," BUDGET ",\"rules\":[{\"match\":\"x\"}]}", "/rules/0"},
        {"{" ALLOCATION "," BUDGET ",\"rules\":[{\"match\":\"x\",\"min_bits\":5,\"max_bits\":4}]}",
         "/rules/0/min_bits"},
        {"{" ALLOCATION "," BUDGET
         ",\"rules\":[{\"match\":\"x\",\"min_bits\":5,\"pin\":{\"method\":\"rtn\",\"bits\":4}}]}",
         "/rules/0/pin"},
        {"{" ALLOCATION "," BUDGET ",\"rules\":[{\"match\":\"x\",\"pin\":{\"method\":\"rtn\",\"bits\":[4]}}]}",
         "/rules/0/pin/bits"},
        {"{" ALLOCATION "," BUDGET ",\"rules\":[{\"tie\":[\"q_proj\"]}]}", "/rules/0/tie"},
        {"{" EVAL ",\"allocation\":\"A\",\"uniform\":{\"method\":\"rtn\",\"bits\":4}}", "/uniform"},
        {"{" EVAL ",\"artifact\":\"A\",\"uniform\":{\"method\":\"rtn\",\"bits\":4}}", "/artifact"},
        {"{" EVAL ",\"artifact\":\"A\",\"calibration\":{\"dataset\":\"C\"}}", "/calibration"},
        {"{" ALLOCATION "," BUDGET ",\"target\":\"gguf\"}", "/target"},
        {"{" QUANTIZE "}", ""},
        {"{" QUANTIZE "," UNIFORM ",\"allocation\":\"A\"}", "/uniform"},
        {"{" QUANTIZE "," UNIFORM ",\"target\":\"gguf\"}", "/target"},
        {"{" QUANTIZE "," UNIFORM ",\"calibration\":{\"dataset\":\"C\"}}", "/calibration"},
        {"{" QUANTIZE ",\"uniform\":{\"method\":\"gptq\",\"bits\":4}}", "/calibration"},
        {"{" QUANTIZE "," UNIFORM ",\"devices\":\"all\"}", "/devices"},
        {"{\"kind\":\"quantize\",\"model\":\"M\"," UNIFORM "}", "/name"},
        {"{" EVAL ",\"devices\":\"two\"}", "/devices"},
        {"{" EVAL ",\"devices\":\"all\",\"device\":\"cuda:0\"}", "/devices"},
        {"{" PROFILE "," CANDIDATES ",\"devices\":\"all\",\"device\":\"auto\"}", "/devices"},
        {"{" ALLOCATION "," BUDGET ",\"devices\":\"all\"}", "/devices"},
        {"{" EVAL ",\"length\":1}", "/length"},
        {"{" EVAL ",\"windows\":0}", "/windows"},
        {"{" EVAL ",\"protocol\":\"llama\"}", "/protocol"},
        {"{" EVAL ",\"model\":\"\"}", "/model"},
    };
    check_faults(cases, sizeof cases / sizeof *cases);
}

/* … of what was written, not of what it stands for. */
static void details_say_what_to_do(void **state) {
    (void)state;
    static const struct {
        const char *text, *detail;
    } cases[] = {
        {"{" PROFILE ",\"head\":true}", "or give candidates that are not"},
        {"{" PROFILE "," GUIDED ",\"head\":true}", "or give candidates that are not"},
        {"{" PROFILE "," CANDIDATES ",\"scores\":[\"kfac\"],\"head\":true}", "leave it out, or them"},
        {"{" PROFILE "," CANDIDATES ",\"around\":\"J\",\"head\":true}", "leave it out, or around"},
        {"{" PROFILE ",\"candidates\":[{\"method\":\"rtn\"}]}", "2, 3, 4, 5, 6 or 8, or a list of these"},
        {"{" EVAL ",\"uniform\":{\"method\":\"rtn\"}}", "is required: 2, 3, 4, 5, 6 or 8"},
        {"{" SWEEP ",\"noise\":0}", "must be between 1e-06 and 10"},
        {"{" SWEEP ",\"noise\":1,\"seed\":-1}", "must be between 0 and 9007199254740991"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        assert_int_equal(decode(&f, cases[i].text), RC_INVALID);
        size_t length = strlen(f.e.message), expected = strlen(cases[i].detail);
        if (length < expected || strcmp(f.e.message + length - expected, cases[i].detail) != 0)
            fail_msg("%s: %s", cases[i].text, f.e.message);
        arena_release(&f.arena);
    }
}

static void every_fault_of_a_sweep_has_its_pointer(void **state) {
    (void)state;
    static const struct fault cases[] = {
        {"{\"kind\":\"sweep\",\"model\":\"M\"}", "/dataset"},
        {"{" SWEEP ",\"candidate\":{\"method\":\"none\"}}", "/candidate"},
        {"{" SWEEP ",\"candidate\":{\"method\":\"awq\",\"bits\":4}" ON_C "}", "/candidate"},
        {"{" SWEEP ",\"candidate\":{\"method\":\"awq+gptq\",\"bits\":4}" ON_C "}", "/candidate"},
        {"{" SWEEP ",\"candidate\":{\"method\":\"rtn\",\"bits\":[3,4]}}", "/candidate/bits"},
        {"{" SWEEP ",\"candidate\":{\"method\":\"rtn\",\"bits\":4},\"noise\":0.1}", "/noise"},
        {"{" SWEEP ",\"noise\":0}", "/noise"},
        {"{" SWEEP ",\"noise\":10.5}", "/noise"},
        {"{" SWEEP ",\"seed\":1}", "/seed"},
        {"{" SWEEP ",\"candidate\":{\"method\":\"gptq\",\"bits\":4}}", "/calibration"},
        {"{" SWEEP ",\"noise\":0.1" ON_C "}", "/calibration"},
        {"{" SWEEP ON_C "}", "/calibration"},
        {"{" SWEEP ",\"devices\":\"all\"}", "/devices"},
        {"{" SWEEP ",\"layers\":\"[\"}", "/layers"},
        {"{" SWEEP ",\"head\":true}", "/head"},
        {"{" SWEEP ",\"length\":1}", "/length"},
        {"{" SWEEP ",\"windows\":0}", "/windows"},
    };
    check_faults(cases, sizeof cases / sizeof *cases);
}

static void a_job_is_split_when_it_says_so(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool split;
    } cases[] = {{"{" EVAL "}", false},
                 {"{" EVAL ",\"device\":\"cuda:0\"}", false},
                 {"{" EVAL ",\"devices\":\"all\"}", true},
                 {"{" PROFILE "," CANDIDATES ",\"devices\":\"all\"}", true},
                 {"{" PROFILE "," GUIDED ",\"scores\":[\"fisher\",\"kfac\",\"diag\"],\"devices\":\"all\"}", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        expect_ok(&f, cases[i].text);
        assert_int_equal(spec_is_split(&f.spec), cases[i].split);
        arena_release(&f.arena);
    }
}

static void labels_are_bounded(void **state) {
    (void)state;
    struct fixture f;
    char text[512];
    snprintf(text, sizeof text, "{" EVAL ",\"label\":\"%0200d\"}", 0);
    expect_ok(&f, text);
    arena_release(&f.arena);
    snprintf(text, sizeof text, "{" EVAL ",\"label\":\"%0201d\"}", 0);
    assert_int_equal(decode(&f, text), RC_INVALID);
    assert_string_equal(f.e.pointer, "/label");
    arena_release(&f.arena);
}

static void every_kind_describes_itself(void **state) {
    (void)state;
    for (const struct job_kind *kind = job_kinds; kind->name != NULL; kind++) {
        assert_ptr_equal(job_kind_find(kind->name), kind);
        json_t *schema = schema_describe(kind->schema);
        json_t *member = json_object_get(json_object_get(schema, "properties"), "kind");
        assert_string_equal(json_string_value(json_array_get(json_object_get(member, "enum"), 0)), kind->name);
        json_decref(schema);
    }
    assert_null(job_kind_find("study"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(profile_has_the_documented_defaults),
        cmocka_unit_test(allocation_has_the_documented_defaults),
        cmocka_unit_test(eval_calibrates_where_a_candidate_needs_it),
        cmocka_unit_test(refining_needs_a_calibration),
        cmocka_unit_test(eval_length_follows_the_protocol),
        cmocka_unit_test(sweep_has_the_documented_defaults),
        cmocka_unit_test(rules_are_decoded),
        cmocka_unit_test(common_members_fit_every_kind),
        cmocka_unit_test(references_name_jobs_of_a_kind),
        cmocka_unit_test(a_sweep_comes_with_its_rows),
        cmocka_unit_test(an_artifacts_name_is_one_folder),
        cmocka_unit_test(quantize_names_what_it_reads_and_makes),
        cmocka_unit_test(every_fault_has_its_pointer),
        cmocka_unit_test(details_say_what_to_do),
        cmocka_unit_test(every_fault_of_a_sweep_has_its_pointer),
        cmocka_unit_test(a_profile_of_nothing_but_a_model_is_guided),
        cmocka_unit_test(a_profile_around_an_allocation_is_scored_by_gradients),
        cmocka_unit_test(a_profile_says_where_other_scores_come_from),
        cmocka_unit_test(labels_are_bounded),
        cmocka_unit_test(every_kind_describes_itself),
        cmocka_unit_test(a_job_is_split_when_it_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
