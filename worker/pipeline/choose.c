#include "worker/pipeline/choose.h"

#include "base/mem.h"
#include "worker/pipeline/match.h"

enum rc choose_linears(const struct model *model, const char *regex, bool head, int64_t **place, size_t *count,
                       struct err *e) {
    struct match *match = NULL;
    enum rc rc = RC_OK;
    *count = 0;
    *place = xcalloc((size_t)model->linear_count, sizeof **place);
    if (regex) TRY(match_new(regex, &match, e));
    for (int64_t i = 0; rc == RC_OK && i < model->linear_count; i++) {
        bool found = model->linears[i].block >= 0 || head;
        if (found && match) rc = match_test(match, model->linears[i].name, &found, e);
        if (rc == RC_OK && found) (*place)[(*count)++] = i;
    }
    match_free(match);
    if (rc == RC_OK && *count == 0)
        return err_at(e, "/layers", RC_INVALID, "no Linear of %s matches \"%s\"; their names are like %s", model->name,
                      regex ? regex : "", model->linears[0].name);
    return rc;
}
