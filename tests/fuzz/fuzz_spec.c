/* Job specs: any bytes decode or are refused; a schema that accepts must have filled what its readers use. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/spec.h"
#include "tests/fuzz/target.h"

static void require(bool condition) {
    if (!condition) abort();
}

static void check_candidates(const struct list *list) {
    require(list->count > 0 && list->count <= CANDIDATES_MAX);
    for (size_t i = 0; i < list->count; i++) {
        const struct candidate *c = (const struct candidate *)list->items + i;
        struct candidate again;
        char id[CANDIDATE_ID_SIZE];
        require(candidate_from_id(candidate_id(c, id), &again, NULL) == RC_OK);
    }
}

static void check_accepted(const struct job_kind *kind, const union spec *spec) {
    if (strcmp(kind->name, "profile") == 0) {
        require(spec->profile.model != NULL && spec->profile.calibration != NULL);
        check_candidates(&spec->profile.candidates);
    } else if (strcmp(kind->name, "eval") == 0) {
        require(spec->eval.length >= 2 && spec->eval.dataset != NULL);
    } else if (strcmp(kind->name, "quantize") == 0) {
        require(spec->quantize.name != NULL && strchr(spec->quantize.name, '/') == NULL);
        require((spec->quantize.allocation != NULL) != (spec->quantize.uniform != NULL));
    } else if (strcmp(kind->name, "sweep") == 0) {
        require(spec->sweep.length >= 2 && spec->sweep.windows >= 1 && spec->sweep.dataset != NULL);
        require((spec->sweep.candidate != NULL) != spec->sweep.has_noise);
    } else {
        require(spec->allocation.profile != NULL && spec->allocation.budget != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *json = NULL;
    struct err e = {0};
    if (json_parse((const char *)data, size, &json, &e) != RC_OK) {
        require(e.message[0] != '\0');
        return 0;
    }
    union spec spec;
    const struct job_kind *kind;
    struct arena arena = {0};
    struct problems problems = {0};
    enum rc rc = spec_decode(json, &spec, &kind, &arena, &problems, &e);
    require((rc == RC_OK) == (problems.count == 0));
    if (rc == RC_OK) check_accepted(kind, &spec);
    arena_release(&arena);
    json_decref(json);
    return 0;
}
