#include "worker/pipeline/prints.h"

#include <stdlib.h>
#include <string.h>

static enum rc store(const struct job *job, const struct model *model, const struct fingerprints *prints,
                     const char *key, struct err *e) {
    json_t *data = fingerprints_store(prints);
    struct message m = {.type = MSG_STORE,
                        .store = {.cache = CACHE_FINGERPRINT, .key = key, .model = model->name, .data = data}};
    enum rc rc = job->link->send(job->link->ctx, &m, e);
    json_decref(data);
    return rc;
}

enum rc prints_open(const struct job *job, const struct model *model, struct fingerprints **prints, struct err *e) {
    char key[HASH_TEXT_SIZE];
    *prints = fingerprints_new(model);
    fingerprints_key(*prints, key);
    json_t *keys = json_pack("[s]", key), *found = NULL;
    enum rc rc = job->link->lookup(job->link->ctx, CACHE_FINGERPRINT, keys, &found, e);
    json_decref(keys);
    TRY(rc);
    fingerprints_restore(*prints, json_object_get(found, key));
    json_decref(found);
    int64_t hashed = 0;
    for (; fingerprints_next(*prints); hashed++)
        if (job_cancelled(job)) return err_set(e, RC_CANCELLED, "cancelled");
    return hashed ? store(job, model, *prints, key, e) : RC_OK;
}

json_t *prints_json(const struct fingerprints *prints) {
    json_t *tensors = fingerprints_store(prints);
    char *text = json_dumps(tensors, JSON_COMPACT | JSON_SORT_KEYS), hash[HASH_TEXT_SIZE];
    json_decref(tensors);
    if (!text) return json_null();
    struct hash128 sum = hash_bytes(text, strlen(text));
    free(text);
    return json_string(hash_text(&sum, hash));
}
