#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/schema.h"

/* One member of every type. */
struct part {
    int64_t weight;
};
struct thing {
    const char *name, *pattern, *color;
    int64_t count, size;
    double ratio;
    bool on, has_count;
    int mode;
    struct part *part;
    struct list parts, tags;
    int custom;
};

static const struct field part_fields[] = {
    {.name = "weight",
     .type = FIELD_INT,
     .offset = offsetof(struct part, weight),
     .required = true,
     .min = 1,
     .max = 9},
    {0},
};
static const struct schema part_schema = {.name = "part", .fields = part_fields, .size = sizeof(struct part)};

static void custom_decode(const json_t *value, void *member, struct decode *d) {
    if (!json_is_integer(value)) problem_here(d, "custom wants an integer");
    *(int *)member = (int)json_integer_value(value);
}

static json_t *custom_describe(void) {
    return json_pack("{s:s}", "type", "integer");
}

static const char *const modes[] = {"slow", "fast", NULL};
static const char *const planned_modes[] = {"warp", NULL};
static const char *const colors[] = {"red", "green", NULL};

static const struct field thing_fields[] = {
    {.name = "name",
     .type = FIELD_STRING,
     .offset = offsetof(struct thing, name),
     .required = true,
     .min = 1,
     .max = 8},
    {.name = "pattern", .type = FIELD_REGEX, .offset = offsetof(struct thing, pattern)},
    {.name = "color", .type = FIELD_STRING, .offset = offsetof(struct thing, color), .values = colors},
    {.name = "count",
     .type = FIELD_INT,
     .offset = offsetof(struct thing, count),
     .min = -5,
     .max = 5,
     .presence = offsetof(struct thing, has_count) + 1},
    {.name = "size", .type = FIELD_BYTES, .offset = offsetof(struct thing, size), .min = 1, .max = 1e12},
    {.name = "ratio", .type = FIELD_NUMBER, .offset = offsetof(struct thing, ratio), .min = 0, .max = 1},
    {.name = "on", .type = FIELD_BOOL, .offset = offsetof(struct thing, on)},
    {.name = "mode",
     .type = FIELD_ENUM,
     .offset = offsetof(struct thing, mode),
     .values = modes,
     .planned = planned_modes},
    {.name = "part", .type = FIELD_OBJECT, .offset = offsetof(struct thing, part), .schema = &part_schema},
    {.name = "parts",
     .type = FIELD_OBJECTS,
     .offset = offsetof(struct thing, parts),
     .min = 1,
     .max = 3,
     .schema = &part_schema},
    {.name = "tags", .type = FIELD_STRINGS, .offset = offsetof(struct thing, tags), .values = colors},
    {.name = "custom",
     .type = FIELD_CUSTOM,
     .offset = offsetof(struct thing, custom),
     .decode = custom_decode,
     .describe = custom_describe},
    {0},
};

static void thing_defaults(void *object) {
    struct thing *thing = object;
    thing->on = true;
    thing->ratio = 0.5;
    thing->mode = 1;
}

static void thing_check(void *object, struct decode *d) {
    struct thing *thing = object;
    if (thing->count == 5 && !thing->on) problem_at(d, "count", "needs on");
    if (thing->size == 0) thing->size = 77;
}

static const struct schema thing_schema = {
    .name = "thing",
    .fields = thing_fields,
    .size = sizeof(struct thing),
    .defaults = thing_defaults,
    .check = thing_check,
};

struct fixture {
    struct arena arena;
    struct problems problems;
    struct thing thing;
    struct err e;
};

static enum rc decode(struct fixture *f, const char *text) {
    *f = (struct fixture){0};
    json_t *value = NULL;
    assert_int_equal(json_parse(text, strlen(text), &value, &f->e), RC_OK);
    enum rc rc = schema_decode(&thing_schema, value, &f->thing, &f->arena, &f->problems, &f->e);
    json_decref(value); /* what was decoded must not borrow from it */
    return rc;
}

static void decodes_every_type(void **state) {
    (void)state;
    struct fixture f;
    assert_int_equal(decode(&f,
                            "{\"name\":\"n\",\"pattern\":\"^a.*$\",\"color\":\"green\",\"count\":-5,\"size\":\"1GB\","
                            "\"ratio\":1,\"on\":false,\"mode\":\"slow\",\"part\":{\"weight\":9},"
                            "\"parts\":[{\"weight\":1},{\"weight\":2}],\"tags\":[\"red\",\"green\"],\"custom\":3}"),
                     RC_OK);
    assert_string_equal(f.thing.name, "n");
    assert_string_equal(f.thing.pattern, "^a.*$");
    assert_string_equal(f.thing.color, "green");
    assert_int_equal(f.thing.count, -5);
    assert_true(f.thing.has_count);
    assert_int_equal(f.thing.size, 1000000000);
    assert_true(f.thing.ratio == 1);
    assert_false(f.thing.on);
    assert_int_equal(f.thing.mode, 0);
    assert_int_equal(f.thing.part->weight, 9);
    assert_int_equal(f.thing.parts.count, 2);
    assert_int_equal(((struct part *)f.thing.parts.items)[1].weight, 2);
    assert_string_equal(((const char **)f.thing.tags.items)[1], "green");
    assert_int_equal(f.thing.custom, 3);
    arena_release(&f.arena);
}

static void absent_and_null_take_defaults(void **state) {
    (void)state;
    struct fixture f;
    assert_int_equal(decode(&f, "{\"name\":\"n\",\"on\":null,\"count\":null,\"part\":null}"), RC_OK);
    assert_true(f.thing.on);
    assert_true(f.thing.ratio == 0.5);
    assert_int_equal(f.thing.mode, 1);
    assert_false(f.thing.has_count);
    assert_null(f.thing.part);
    assert_int_equal(f.thing.size, 77); /* settled by the check */
    arena_release(&f.arena);
}

static void every_fault_has_its_pointer(void **state) {
    (void)state;
    static const struct {
        const char *text, *pointer;
    } cases[] = {
        {"[]", ""},
        {"{}", "/name"},
        {"{\"name\":null}", "/name"},
        {"{\"name\":\"\"}", "/name"},
        {"{\"name\":\"123456789\"}", "/name"},
        {"{\"name\":7}", "/name"},
        {"{\"name\":\"n\",\"pattern\":\"(\"}", "/pattern"},
        {"{\"name\":\"n\",\"color\":\"blue\"}", "/color"},
        {"{\"name\":\"n\",\"count\":6}", "/count"},
        {"{\"name\":\"n\",\"count\":1.0}", "/count"},
        {"{\"name\":\"n\",\"count\":5,\"on\":false}", "/count"},
        {"{\"name\":\"n\",\"size\":0}", "/size"},
        {"{\"name\":\"n\",\"size\":\"12XB\"}", "/size"},
        {"{\"name\":\"n\",\"size\":1.5}", "/size"},
        {"{\"name\":\"n\",\"ratio\":1.01}", "/ratio"},
        {"{\"name\":\"n\",\"ratio\":\"1\"}", "/ratio"},
        {"{\"name\":\"n\",\"on\":1}", "/on"},
        {"{\"name\":\"n\",\"mode\":\"warp\"}", "/mode"},
        {"{\"name\":\"n\",\"mode\":1}", "/mode"},
        {"{\"name\":\"n\",\"part\":[]}", "/part"},
        {"{\"name\":\"n\",\"part\":{}}", "/part/weight"},
        {"{\"name\":\"n\",\"part\":{\"weight\":1,\"a/b~c\":1}}", "/part/a~1b~0c"},
        {"{\"name\":\"n\",\"parts\":[]}", "/parts"},
        {"{\"name\":\"n\",\"parts\":[{\"weight\":1},{\"weight\":10}]}", "/parts/1/weight"},
        {"{\"name\":\"n\",\"parts\":{}}", "/parts"},
        {"{\"name\":\"n\",\"tags\":[\"red\",\"blue\"]}", "/tags/1"},
        {"{\"name\":\"n\",\"custom\":[]}", "/custom"},
        {"{\"name\":\"n\",\"unknown\":1}", "/unknown"},
        {"{\"name\":\"n\",\"Name\":\"n\"}", "/Name"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        if (decode(&f, cases[i].text) != RC_INVALID) fail_msg("accepted: %s", cases[i].text);
        assert_int_equal(f.problems.count, 1);
        assert_string_equal(f.problems.items[0].pointer, cases[i].pointer);
        assert_string_equal(f.e.pointer, cases[i].pointer);
        assert_string_equal(f.e.message, f.problems.items[0].detail);
        arena_release(&f.arena);
    }
}

static void reports_all_faults_and_keeps_a_bounded_number(void **state) {
    (void)state;
    struct fixture f;
    assert_int_equal(decode(&f, "{\"name\":1,\"count\":9,\"on\":1,\"x\":1}"), RC_INVALID);
    assert_int_equal(f.problems.count, 4);
    arena_release(&f.arena);
    char text[1024] = "{\"name\":\"n\"";
    for (int i = 0; i < 40; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), ",\"unknown%d\":1", i);
    snprintf(text + strlen(text), sizeof text - strlen(text), "}");
    assert_int_equal(decode(&f, text), RC_INVALID);
    assert_int_equal(f.problems.count, 40);
    arena_release(&f.arena);
}

static void details_say_what_would_be_right(void **state) {
    (void)state;
    static const struct {
        const char *text, *detail;
    } cases[] = {
        {"{\"name\":\"n\",\"mode\":\"warp\"}", "'warp' is not available in this version; use one of: slow, fast"},
        {"{\"name\":\"n\",\"mode\":\"x\"}", "'x' is not known here; use one of: slow, fast"},
        {"{\"name\":\"n\",\"count\":6}", "must be between -5 and 5"},
        {"{\"name\":\"n\",\"on\":[]}", "must be true or false, not an array"},
        {"{\"name\":\"n\",\"part\":{\"weight\":1,\"w\":1}}", "unknown member; part takes: weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        decode(&f, cases[i].text);
        assert_string_equal(f.problems.items[0].detail, cases[i].detail);
        arena_release(&f.arena);
    }
}

static void problems_may_be_left_out(void **state) {
    (void)state;
    struct thing thing;
    struct arena arena = {0};
    struct err e = {0};
    json_t *value = json_object();
    assert_int_equal(schema_decode(&thing_schema, value, &thing, &arena, NULL, &e), RC_INVALID);
    assert_string_equal(e.pointer, "/name");
    json_decref(value);
    arena_release(&arena);
}

static void describes_itself_as_json_schema(void **state) {
    (void)state;
    json_t *schema = schema_describe(&thing_schema), *expected = NULL;
    static const char text[] =
        "{\"title\":\"thing\",\"type\":\"object\",\"properties\":{"
        "\"name\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":8},"
        "\"pattern\":{\"type\":\"string\",\"maxLength\":255,\"format\":\"regex\"},"
        "\"color\":{\"type\":\"string\",\"enum\":[\"red\",\"green\"]},"
        "\"count\":{\"type\":\"integer\",\"minimum\":-5,\"maximum\":5},"
        "\"size\":{\"anyOf\":[{\"type\":\"integer\",\"minimum\":1,\"maximum\":1000000000000},"
        "{\"type\":\"string\",\"examples\":[\"12GiB\"]}]},"
        "\"ratio\":{\"type\":\"number\",\"minimum\":0.0,\"maximum\":1.0,\"default\":0.5},"
        "\"on\":{\"type\":\"boolean\",\"default\":true},"
        "\"mode\":{\"type\":\"string\",\"enum\":[\"slow\",\"fast\"],\"default\":\"fast\"},"
        "\"part\":{\"title\":\"part\",\"type\":\"object\",\"properties\":{\"weight\":{\"type\":\"integer\",\"minimum\":"
        "1,"
        "\"maximum\":9}},\"required\":[\"weight\"],\"additionalProperties\":false},"
        "\"parts\":{\"type\":\"array\",\"items\":{\"title\":\"part\",\"type\":\"object\",\"properties\":{\"weight\":{"
        "\"type\":\"integer\",\"minimum\":1,\"maximum\":9}},\"required\":[\"weight\"],\"additionalProperties\":false},"
        "\"minItems\":1,\"maxItems\":3},"
        "\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"enum\":[\"red\",\"green\"]},\"maxItems\":1024},"
        "\"custom\":{\"type\":\"integer\"}},"
        "\"required\":[\"name\"],\"additionalProperties\":false}";
    struct err e;
    assert_int_equal(json_parse(text, sizeof text - 1, &expected, &e), RC_OK);
    char *got = json_line(schema), *want = json_line(expected);
    assert_string_equal(got, want);
    free(got);
    free(want);
    json_decref(schema);
    json_decref(expected);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_every_type),
        cmocka_unit_test(absent_and_null_take_defaults),
        cmocka_unit_test(every_fault_has_its_pointer),
        cmocka_unit_test(reports_all_faults_and_keeps_a_bounded_number),
        cmocka_unit_test(details_say_what_would_be_right),
        cmocka_unit_test(problems_may_be_left_out),
        cmocka_unit_test(describes_itself_as_json_schema),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
