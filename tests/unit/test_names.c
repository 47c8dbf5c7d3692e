/* Lists in refusals: every name is whole, and what there is no room for is counted. */
#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/names.h"
#include "worker/pipeline/places.h"

static void must_list(size_t room, const char *expected) {
    static const char *const things[] = {"one", "two", "three", "four"};
    struct strbuf text = STRBUF_INIT;
    strbuf_puts(&text, "not: ");
    struct names names = {.text = &text, .room = room};
    for (size_t i = 0; i < 4; i++)
        names_add(&names, i + 1, things[i]);
    names_end(&names);
    assert_string_equal(text.data, expected);
    strbuf_release(&text);
}

static void names_are_whole_and_the_rest_is_counted(void **state) {
    (void)state;
    must_list(100, "not: one, two, three, four");
    must_list(21, "not: one, two, three, four");
    must_list(20, "not: one, two, three … and 4 more");
    must_list(14, "not: one, two … and 7 more"); /* no later one that would fit */
    must_list(0, "not: one … and 9 more");
}

static void one_that_is_left_out_is_the_last_to_be_looked_at(void **state) {
    (void)state;
    struct strbuf text = STRBUF_INIT;
    struct names names = {.text = &text, .room = 4};
    names_add(&names, 1, "a");
    names_add(&names, 1, "long");
    names_add(&names, 1, "b"); /* would fit */
    names_end(&names);
    assert_string_equal(text.data, "a … and 2 more");
    strbuf_release(&text);
}

static void a_list_has_its_separator(void **state) {
    (void)state;
    struct strbuf text = STRBUF_INIT;
    struct names names = {.text = &text, .room = 9, .separator = "; "};
    names_add(&names, 1, "a: no");
    names_add(&names, 1, "b:");
    names_add(&names, 1, "c");
    names_end(&names);
    assert_string_equal(text.data, "a: no; b: … and 1 more");
    strbuf_release(&text);
}

enum { BLOCKS = 400 };

/* Each projection in every `step`th block. */
static char *places(const char *const *projections, int step, size_t room, size_t *count) {
    static struct place all[7 * BLOCKS];
    struct strbuf text = STRBUF_INIT;
    *count = 0;
    for (int block = 0; block < BLOCKS; block += step)
        for (int i = 0; projections[i]; i++)
            all[(*count)++] = (struct place){projections[i], block};
    places_text(all, *count, room, &text);
    return strbuf_detach(&text);
}

static void linears_are_told_by_projection_and_block(void **state) {
    (void)state;
    static const struct place some[] = {{"q_proj", 0}, {"q_proj", 1}, {"down_proj", 2}, {"q_proj", 7}, {"lm_head", -1}};
    struct strbuf text = STRBUF_INIT;
    places_text(some, 5, 100, &text);
    assert_string_equal(text.data, "q_proj (blocks 0-1, 7), down_proj (block 2), lm_head");
    strbuf_clear(&text);
    places_text(some, 5, 30, &text);
    assert_string_equal(text.data, "q_proj (blocks 0-1, 7) … and 2 more");
    strbuf_release(&text);
}

/* What is told and what is counted are all of them, however many there are. */
static void linears_without_room_are_counted(void **state) {
    (void)state;
    static const char *const two[] = {"q_proj", "down_proj", NULL};
    size_t count;
    char *text = places(two, 1, 20, &count), end[64];
    assert_string_equal(text, "q_proj (blocks 0-399) … and 400 more");
    free(text);
    text = places(two, 3, 60, &count); /* the list of blocks ends so too */
    int told = 0, blocks = 0;
    assert_memory_equal(text, "q_proj (blocks 0, 3, 6, ", 24);
    for (const char *at = strchr(text, '('); *at && strncmp(at, " …", strlen(" …")) != 0; at++)
        told += *at == ',';
    assert_int_equal(sscanf(strstr(text, "…"), "… and %d more)", &blocks), 1);
    assert_int_equal(2 * (told + 1 + blocks), count);
    snprintf(end, sizeof end, " more) … and %zu more", count / 2);
    assert_string_equal(text + strlen(text) - strlen(end), end);
    assert_true(strlen(text) < 200);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_whole_and_the_rest_is_counted),
        cmocka_unit_test(one_that_is_left_out_is_the_last_to_be_looked_at),
        cmocka_unit_test(a_list_has_its_separator),
        cmocka_unit_test(linears_are_told_by_projection_and_block),
        cmocka_unit_test(linears_without_room_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
