/* Rules cross cells out of the profile's table, or tie Linears together. All rules hold at once; their order matters
 * only for which one an error names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/names.h"
#include "base/strbuf.h"
#include "worker/pipeline/allocate.h"
#include "worker/pipeline/match.h"

enum { CANDIDATES_ROOM = 120 };

struct rule {
    const struct spec_rule *spec;
    int index;
    struct match *match, *except; /* NULL: every name, none */
    int blocks;                   /* of the profile */
};

static enum rc fault(const struct rule *rule, const char *member, const char *message, struct err *e) {
    char pointer[64];
    snprintf(pointer, sizeof pointer, "/rules/%d%s%s", rule->index, member ? "/" : "", member ? member : "");
    return err_at(e, pointer, RC_INVALID, "%s", message);
}

static enum rc fault_of_none(const struct profile_table *table, const struct rule *rule, struct err *e) {
    const char *by = rule->spec->match ? "match" : rule->spec->tie.count ? "tie" : NULL;
    char message[400];
    snprintf(message, sizeof message, "is about none of the profile's Linears; their names are like %.300s",
             table->linears[0].name);
    return fault(rule, by, message, e);
}

static bool has_projection(const struct list *tie, const char *projection) {
    const char *const *names = tie->items;
    for (size_t i = 0; i < tie->count; i++)
        if (strcmp(names[i], projection) == 0) return true;
    return false;
}

/* Whether a rule is about a Linear: what it says of names, blocks and projections must all hold. */
static enum rc selects(const struct rule *rule, const struct profiled_linear *linear, bool *yes, struct err *e) {
    const struct spec_rule *spec = rule->spec;
    *yes = true;
    if (spec->has_first || spec->has_last) {
        bool first = spec->has_first && linear->block >= 0 && linear->block < spec->first;
        bool last = spec->has_last && linear->block >= 0 && linear->block >= rule->blocks - spec->last;
        *yes = first || last;
    }
    if (*yes && spec->tie.count) *yes = linear->block >= 0 && has_projection(&spec->tie, linear->projection);
    if (*yes && rule->match) TRY(match_test(rule->match, linear->name, yes, e));
    bool excepted = false;
    if (*yes && rule->except) TRY(match_test(rule->except, linear->name, &excepted, e));
    *yes = *yes && !excepted;
    return RC_OK;
}

/* "hqq2g64, hqq3g64, …": the candidates that `linear` still has (−1: all of the profile's). */
static void list_candidates(const struct profile_table *table, int linear, struct strbuf *out) {
    struct names ids = {.text = out, .room = CANDIDATES_ROOM};
    for (int c = 0; c < table->candidate_count; c++) {
        if (linear >= 0 && !table_cell(table, linear, c)->allowed) continue;
        names_add(&ids, 1, table->ids[c]);
    }
    names_end(&ids);
}

static bool satisfies(const struct spec_rule *spec, const struct candidate *candidate, const char *id) {
    if (spec->pin) {
        char pin[CANDIDATE_ID_SIZE];
        return strcmp(candidate_id(spec->pin, pin), id) == 0;
    }
    if (spec->has_method && candidate->method != (enum method)spec->method) return false;
    return (!spec->has_min_bits || candidate->bits >= spec->min_bits) &&
           (!spec->has_max_bits || candidate->bits <= spec->max_bits);
}

static enum rc nothing_left(const struct profile_table *table, const struct rule *rule, int linear, struct err *e) {
    const struct spec_rule *spec = rule->spec;
    struct strbuf had = STRBUF_INIT;
    char message[400], wanted[96], id[CANDIDATE_ID_SIZE];
    list_candidates(table, linear, &had);
    if (spec->pin)
        snprintf(wanted, sizeof wanted, "is %s", candidate_id(spec->pin, id));
    else
        snprintf(wanted, sizeof wanted, "has %lld to %lld bits%s%s", spec->has_min_bits ? (long long)spec->min_bits : 2,
                 spec->has_max_bits ? (long long)spec->max_bits : 16, spec->has_method ? " and is of method " : "",
                 spec->has_method ? method_names[spec->method] : "");
    snprintf(message, sizeof message, "leaves %s without a candidate: of what it had (%s) none %s",
             table->linears[linear].name, had.data ? had.data : "nothing", wanted);
    strbuf_release(&had);
    const char *member = spec->pin            ? "pin"
                         : spec->has_min_bits ? "min_bits"
                         : spec->has_max_bits ? "max_bits"
                                              : "method";
    return fault(rule, member, message, e);
}

static enum rc filter(struct profile_table *table, const struct rule *rule, int linear, struct err *e) {
    bool left = false;
    for (int c = 0; c < table->candidate_count && !left; c++)
        left = table_cell(table, linear, c)->allowed && satisfies(rule->spec, &table->candidates[c], table->ids[c]);
    if (!left) return nothing_left(table, rule, linear, e);
    for (int c = 0; c < table->candidate_count; c++)
        if (!satisfies(rule->spec, &table->candidates[c], table->ids[c])) table_cell(table, linear, c)->allowed = false;
    return RC_OK;
}

/* Under the earlier one. */
void table_join(struct profile_table *table, int a, int b) {
    int from = table->linears[a].tie, to = table->linears[b].tie;
    if (from < to) {
        int swap = from;
        from = to;
        to = swap;
    }
    for (int i = 0; i < table->linear_count; i++)
        if (table->linears[i].tie == from) table->linears[i].tie = to;
}

/* Ties the selected Linears of each block to the first of them. */
static enum rc tie(struct profile_table *table, const struct rule *rule, const bool *selected, struct err *e) {
    bool tied = false;
    for (int i = 0; i < table->linear_count; i++) {
        if (!selected[i]) continue;
        for (int j = i + 1; j < table->linear_count; j++) {
            if (!selected[j] || table->linears[j].block != table->linears[i].block) continue;
            table_join(table, i, j);
            table->linears[i].tie_rule = table->linears[j].tie_rule = rule->index;
            tied = true;
            break; /* the next of the block continues from j */
        }
    }
    return tied ? RC_OK : fault(rule, "tie", "ties nothing: no block has two of these projections", e);
}

static enum rc apply_to_selected(struct profile_table *table, const struct rule *rule, bool *selected, struct err *e) {
    const struct spec_rule *spec = rule->spec;
    bool any = false;
    for (int i = 0; i < table->linear_count; i++) {
        TRY(selects(rule, &table->linears[i], &selected[i], e));
        any |= selected[i];
    }
    if (!any) return fault_of_none(table, rule, e);
    if (spec->tie.count) TRY(tie(table, rule, selected, e));
    if (!spec->pin && !spec->has_min_bits && !spec->has_max_bits && !spec->has_method) return RC_OK;
    for (int i = 0; i < table->linear_count; i++)
        if (selected[i]) TRY(filter(table, rule, i, e));
    return RC_OK;
}

static enum rc check_pin(const struct profile_table *table, const struct rule *rule, struct err *e) {
    char id[CANDIDATE_ID_SIZE], message[400];
    candidate_id(rule->spec->pin, id);
    for (int c = 0; c < table->candidate_count; c++)
        if (strcmp(table->ids[c], id) == 0) return RC_OK;
    struct strbuf has = STRBUF_INIT;
    list_candidates(table, -1, &has);
    snprintf(message, sizeof message, "%s was not profiled; the profile has %s", id, has.data);
    strbuf_release(&has);
    return fault(rule, "pin", message, e);
}

static enum rc apply(struct profile_table *table, const struct rule *rule, struct err *e) {
    if (rule->spec->pin) TRY(check_pin(table, rule, e));
    bool *selected = calloc((size_t)table->linear_count, sizeof *selected);
    if (!selected) return err_set(e, RC_NO_MEMORY, "no memory to apply rules");
    enum rc rc = apply_to_selected(table, rule, selected, e);
    free(selected);
    return rc;
}

/* What is left to a tie is what is left to all its Linears. */
static enum rc check_ties(const struct profile_table *table, struct err *e) {
    for (int i = 0; i < table->linear_count; i++) {
        int first = table->linears[i].tie;
        bool shared = first == i;
        for (int c = 0; c < table->candidate_count; c++) {
            struct cell *to = table_cell(table, first, c);
            to->allowed = to->allowed && table_cell(table, i, c)->allowed;
            shared |= to->allowed;
        }
        if (shared) continue;
        char message[400];
        struct rule rule = {.index = table->linears[i].tie_rule};
        snprintf(message, sizeof message,
                 "ties %s to %s, but after all rules there is no candidate that every Linear of the tie may have",
                 table->linears[i].name, table->linears[first].name);
        if (rule.index < 0) return err_at(e, "/target", RC_INFEASIBLE, "%s", message);
        return fault(&rule, "tie", message, e);
    }
    return RC_OK;
}

static int count_blocks(const struct profile_table *table) {
    const json_t *model = json_object_get(table->result, "model");
    int blocks = (int)json_integer_value(json_object_get(json_object_get(model, "architecture"), "blocks"));
    for (int i = 0; i < table->linear_count; i++)
        if (table->linears[i].block >= blocks) blocks = table->linears[i].block + 1;
    return blocks;
}

enum rc rules_apply(struct profile_table *table, const struct list *rules, struct err *e) {
    const struct spec_rule *specs = rules->items;
    int blocks = count_blocks(table);
    for (size_t r = 0; r < rules->count; r++) {
        struct rule rule = {.spec = &specs[r], .index = (int)r, .blocks = blocks};
        enum rc rc = specs[r].match ? match_new(specs[r].match, &rule.match, e) : RC_OK;
        if (rc == RC_OK && specs[r].except) rc = match_new(specs[r].except, &rule.except, e);
        if (rc == RC_OK) rc = apply(table, &rule, e);
        match_free(rule.match);
        match_free(rule.except);
        TRY(rc);
    }
    return check_ties(table, e);
}
