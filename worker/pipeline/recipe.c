#include "worker/pipeline/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/names.h"
#include "base/strbuf.h"
#include "worker/pipeline/places.h"
#include "worker/pipeline/quantize.h"

static enum rc assign(const struct model *model, const json_t *row, const char *pointer, struct candidate *recipe,
                      struct err *e) {
    const char *name = NULL, *id = NULL;
    TRY(json_get_string(row, "name", &name, e));
    TRY(json_get_string(row, "candidate", &id, e));
    for (int64_t i = 0; name && id && i < model->linear_count; i++)
        if (!strcmp(model->linears[i].name, name)) return candidate_from_id(id, &recipe[i], e);
    return err_at(e, pointer, RC_INVALID, "the allocation assigns %s, which model %s does not have",
                  name ? name : "a Linear without a name", model->name);
}

static enum rc assign_all(const struct job *job, const struct model *model, const char *member,
                          struct candidate *recipe, struct err *e) {
    const json_t *allocation = json_object_get(json_object_get(job->inputs, member), "result");
    const json_t *row, *assignment = json_object_get(allocation, "assignment");
    char pointer[32];
    size_t k;
    snprintf(pointer, sizeof pointer, "/%s", member);
    if (!json_array_size(assignment))
        return err_at(e, pointer, RC_INVALID, "the allocation's result has no assignment");
    json_array_foreach(assignment, k, row) TRY(assign(model, row, pointer, recipe, e));
    return RC_OK;
}

static struct candidate *recipe_of(const struct model *model, const struct candidate *uniform) {
    struct candidate *recipe = xcalloc((size_t)model->linear_count, sizeof *recipe);
    for (int64_t i = 0; i < model->linear_count; i++) {
        recipe[i] = candidate_default(METHOD_NONE, 16, 0);
        if (uniform && model->linears[i].block >= 0) recipe[i] = *uniform;
    }
    return recipe;
}

enum rc recipe_read_input(const struct job *job, const struct model *model, const char *member,
                          struct candidate **recipe, struct err *e) {
    *recipe = recipe_of(model, NULL);
    return assign_all(job, model, member, *recipe, e);
}

enum rc recipe_read(const struct job *job, const struct model *model, const struct candidate *uniform,
                    const char *allocation, struct candidate **recipe, struct err *e) {
    if (allocation) return recipe_read_input(job, model, "allocation", recipe, e);
    *recipe = recipe_of(model, uniform);
    return RC_OK;
}

int64_t recipe_bytes(const struct model *model, const struct candidate *recipe) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < model->linear_count; i++)
        if (recipe[i].method != METHOD_NONE)
            bytes += candidate_bytes(&recipe[i], model->linears[i].rows, model->linears[i].cols);
    return bytes;
}

/* --- targets --- */

enum { PLACES_ROOM = 160 }; /* of the Linears that one thing is wrong with */

/* What is wrong with each Linear. */
struct faults {
    const struct model *model;
    char **reason; /* [linear_count]; NULL: nothing */
};

/* The Linears of a block lie side by side. */
static enum rc check_tie(const struct model *model, const struct candidate *recipe, enum target target, int64_t index,
                         struct err *e) {
    const struct linear *l = &model->linears[index];
    struct candidate scheme = target_scheme(&recipe[index], l->cols);
    int tie = target_tie(target, l->projection);
    for (int64_t i = index - 1; tie >= 0 && i >= 0 && model->linears[i].block == l->block; i--) {
        const struct linear *other = &model->linears[i];
        if (target_tie(target, other->projection) != tie) continue;
        struct candidate theirs = target_scheme(&recipe[i], other->cols);
        if (!target_same_scheme(&scheme, &theirs))
            return err_set(e, RC_UNSUPPORTED,
                           "%s computes it and %s of its block as one; store both alike, with a rule that ties them",
                           target_names[target], other->projection);
    }
    return RC_OK;
}

static bool has_fault(const struct faults *f, int64_t i, const char *reason) {
    return f->reason[i] && !strcmp(f->reason[i], reason);
}

/* Whether an earlier one is told of together with it. */
static bool is_told(const struct faults *f, int64_t index) {
    for (int64_t i = 0; i < index; i++)
        if (has_fault(f, i, f->reason[index])) return true;
    return false;
}

static void tell(const struct faults *f, int64_t first, struct names *all) {
    struct place *places = xcalloc((size_t)f->model->linear_count, sizeof *places);
    struct strbuf text = STRBUF_INIT;
    size_t count = 0;
    for (int64_t i = first; i < f->model->linear_count; i++)
        if (has_fault(f, i, f->reason[first]))
            places[count++] = (struct place){f->model->linears[i].projection, f->model->linears[i].block};
    places_text(places, count, PLACES_ROOM, &text);
    strbuf_printf(&text, ": %s", f->reason[first]);
    names_add(all, count, text.data);
    strbuf_release(&text);
    free(places);
}

enum rc recipe_check_target(const struct model *model, const struct candidate *recipe, enum target target,
                            struct err *e) {
    const struct faults f = {model, xcalloc((size_t)model->linear_count, sizeof *f.reason)};
    struct strbuf text = STRBUF_INIT;
    struct names all = {.text = &text, .room = sizeof e->message - NAMES_END_SIZE, .separator = "; "};
    struct err fault;
    for (int64_t i = 0; i < model->linear_count; i++) {
        enum rc rc = target_check(target, &recipe[i], model->linears[i].cols, &fault);
        if (rc == RC_OK) rc = check_tie(model, recipe, target, i, &fault);
        if (rc != RC_OK) f.reason[i] = xstrdup(fault.message);
    }
    for (int64_t i = 0; i < model->linear_count; i++)
        if (f.reason[i] && !is_told(&f, i)) tell(&f, i, &all);
    names_end(&all);
    enum rc rc = text.len ? err_at(e, "/target", RC_UNSUPPORTED, "%s", text.data) : RC_OK;
    for (int64_t i = 0; i < model->linear_count; i++)
        free(f.reason[i]);
    free(f.reason);
    strbuf_release(&text);
    return rc;
}
