/* What is to load the model crosses out the candidates that it cannot carry, and ties what it computes as one. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/names.h"
#include "base/strbuf.h"
#include "worker/pipeline/allocate.h"
#include "worker/pipeline/places.h"

enum { PLACES_ROOM = 180, REASONS_ROOM = 160 }; /* of the 512 bytes of a refusal */

static bool cross_out(struct profile_table *table, int linear, enum target target) {
    bool left = false;
    struct err reason;
    for (int c = 0; c < table->candidate_count; c++) {
        struct cell *cell = table_cell(table, linear, c);
        if (cell->allowed && target_check(target, &table->candidates[c], table->linears[linear].cols, &reason) != RC_OK)
            cell->allowed = false;
        left = left || cell->allowed;
    }
    return left;
}

/* Why, candidate by candidate, one reason once. */
static void list_reasons(const struct profile_table *table, int linear, enum target target, struct strbuf *text) {
    struct names reasons = {.text = text, .room = REASONS_ROOM, .separator = "; "};
    struct err reason;
    for (int c = 0; c < table->candidate_count; c++) {
        if (!table_cell(table, linear, c)->measured) continue;
        (void)target_check(target, &table->candidates[c], table->linears[linear].cols, &reason);
        if (text->data && strstr(text->data, reason.message)) continue;
        char *line = xasprintf("%s: %s", table->ids[c], reason.message);
        names_add(&reasons, 1, line);
        free(line);
    }
    names_end(&reasons);
}

static enum rc refuse(const struct profile_table *table, const bool *without, enum target target, struct err *e) {
    struct strbuf names = STRBUF_INIT, reasons = STRBUF_INIT;
    struct place *places = xcalloc((size_t)table->linear_count, sizeof *places);
    size_t count = 0;
    int first = 0;
    while (!without[first])
        first++;
    for (int i = first; i < table->linear_count; i++)
        if (without[i]) places[count++] = (struct place){table->linears[i].projection, table->linears[i].block};
    places_text(places, count, PLACES_ROOM, &names);
    list_reasons(table, first, target, &reasons);
    enum rc rc =
        err_at(e, "/target", RC_INFEASIBLE, "%s carries no candidate that was profiled for %s; profile others: %s",
               target_names[target], names.data, reasons.data ? reasons.data : "");
    free(places);
    strbuf_release(&names);
    strbuf_release(&reasons);
    return rc;
}

static enum rc cross_out_all(struct profile_table *table, enum target target, bool *without, struct err *e) {
    bool any = false;
    for (int i = 0; i < table->linear_count; i++) {
        if (table->linears[i].cols == 0)
            return err_set(e, RC_INVALID, "the profile's rows have no shape: profile anew to solve for a target");
        without[i] = !cross_out(table, i, target);
        any = any || without[i];
    }
    return any ? refuse(table, without, target, e) : RC_OK;
}

static void tie_all(struct profile_table *table, enum target target) {
    for (int i = 0; i < table->linear_count; i++) {
        const struct profiled_linear *linear = &table->linears[i];
        int set = target_tie(target, linear->projection);
        for (int j = i + 1; set >= 0 && j < table->linear_count; j++)
            if (table->linears[j].block == linear->block && target_tie(target, table->linears[j].projection) == set)
                table_join(table, i, j);
    }
}

enum rc target_apply(struct profile_table *table, enum target target, struct err *e) {
    if (target == TARGET_NONE) return RC_OK;
    bool *without = xcalloc((size_t)table->linear_count, sizeof *without);
    enum rc rc = cross_out_all(table, target, without, e);
    if (rc == RC_OK) tie_all(table, target);
    free(without);
    return rc;
}
