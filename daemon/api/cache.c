/* /v1/cache: what the sensitivity cache holds, by model. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "daemon/api/routes.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/store/drift.h"
#include "daemon/store/ids.h"

struct cache_query {
    const char *model;
};
static const struct field cache_query_fields[] = {
    {.name = "model", .type = FIELD_STRING, .offset = offsetof(struct cache_query, model)},
    {0},
};
static const struct schema cache_query_schema = {
    .name = "cache_query", .fields = cache_query_fields, .size = sizeof(struct cache_query)};

struct usage_list {
    json_t *items;
    const char *model; /* NULL: all */
};

static void append_usage(void *ctx, const struct cache_usage *u) {
    struct usage_list *list = ctx;
    char oldest[TIME_SIZE], newest[TIME_SIZE];
    if (list->model != NULL && strcmp(list->model, u->model) != 0) return;
    json_array_append_new(list->items,
                          json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:s}", "model", u->model, "entries",
                                    (json_int_t)u->entries, "linears", (json_int_t)u->linears, "candidates",
                                    (json_int_t)u->candidates, "bytes", (json_int_t)u->bytes, "oldest",
                                    time_format(u->oldest, oldest), "newest", time_format(u->newest, newest)));
}

static enum rc get_cache(struct request *r, struct err *e) {
    struct cache_query query = {0};
    TRY(request_decode_query(r, &query, e));
    struct usage_list list = {.items = json_array(), .model = query.model};
    enum rc rc = cache_usage(store_reader(request_app(r)->store), append_usage, &list, e);
    if (rc != RC_OK) {
        json_decref(list.items);
        return rc;
    }
    respond_json(r, 200, json_pack("{s:o, s:n}", "items", list.items, "next"));
    return RC_OK;
}

struct removal {
    struct request *request; /* NULL once the server has answered without us */
};

static void forget(struct request *r, void *data) {
    (void)r;
    ((struct removal *)data)->request = NULL;
}

static void on_deleted(void *ctx, int64_t removed, const struct err *e) {
    struct removal *removal = ctx;
    if (removal->request != NULL && e->rc != RC_OK)
        respond_error(removal->request, e);
    else if (removal->request != NULL)
        respond_json(removal->request, 200, json_pack("{s:I}", "removed", (json_int_t)removed));
    free(removal);
}

static enum rc delete_cache(struct request *r, struct err *e) {
    struct cache_query query = {0};
    TRY(request_decode_query(r, &query, e));
    struct removal *removal = xcalloc(1, sizeof *removal);
    removal->request = r;
    request_defer(r, &(struct deferral){.cancel = forget, .data = removal});
    cache_delete(request_app(r)->store, query.model, on_deleted, removal);
    return RC_OK;
}

const struct route cache_routes[] = {
    {.method = "GET", .pattern = "/v1/cache", .id = "getCache", .handler = get_cache, .query = &cache_query_schema},
    {.method = "DELETE",
     .pattern = "/v1/cache",
     .id = "deleteCache",
     .handler = delete_cache,
     .query = &cache_query_schema},
    {0},
};
