/* /v1/datasets: texts, uploaded with `curl -T`, kept by the SHA-256 of their bytes. */
#include "daemon/store/datasets.h"

#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "daemon/api/routes.h"
#include "daemon/api/utf8.h"
#include "daemon/app.h"
#include "daemon/http/response.h"
#include "daemon/store/ids.h"

enum { LIST_DEFAULT = 100, LIST_MAX = 1000 };

static json_t *dataset_json(const struct dataset *d) {
    char time[TIME_SIZE];
    char *self = xasprintf("/v1/datasets/%s", d->name);
    json_t *json = json_pack("{s:s, s:I, s:s, s:s, s:{s:s}}", "name", d->name, "bytes", (json_int_t)d->bytes, "sha256",
                             d->sha256, "created_at", time_format(d->created_at, time), "links", "self", self);
    free(self);
    return json;
}

/* ---- upload ---- */

struct upload {
    struct app *app;
    struct request *request; /* NULL once the server has answered without us */
    struct dataset dataset;
    struct sha256_ctx hash;
    struct utf8 utf8;
    char *path;
    int fd;
};

static void upload_free(struct upload *u) {
    if (u->fd >= 0) close(u->fd);
    free(u->path);
    free(u);
}

static enum rc write_all(int fd, const char *bytes, size_t len, struct err *e) {
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, "cannot store the upload");
        bytes += n;
        len -= (size_t)n;
    }
    return RC_OK;
}

static enum rc not_text(const struct upload *u, struct err *e) {
    return err_set(e, RC_INVALID, "a dataset is UTF-8 text, and byte %lld of this one is not",
                   (long long)u->utf8.position);
}

static enum rc upload_write(void *data, const void *bytes, size_t len, struct err *e) {
    struct upload *u = data;
    if (!utf8_update(&u->utf8, bytes, len)) return not_text(u, e);
    sha256_update(&u->hash, len, bytes);
    u->dataset.bytes += (int64_t)len;
    return write_all(u->fd, bytes, len, e);
}

static void upload_abort(void *data) {
    struct upload *u = data;
    unlink(u->path);
    upload_free(u);
}

static void forget_request(struct request *r, void *data) {
    struct upload *u = data;
    (void)r;
    u->request = NULL;
}

static void on_stored(void *ctx, const struct dataset *d, bool created, const struct err *e) {
    struct upload *u = ctx;
    struct request *r = u->request;
    if (r != NULL && e->rc != RC_OK) {
        respond_error(r, e);
    } else if (r != NULL) {
        if (created) respond_header(r, "Location", "/v1/datasets/%s", d->name);
        respond_header(r, "ETag", "\"%s\"", d->sha256);
        respond_json(r, created ? 201 : 200, dataset_json(d));
    }
    upload_free(u);
}

static void hex(const uint8_t *bytes, size_t n, char *out) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = '\0';
}

static enum rc upload_finish(struct request *r, void *data, struct err *e) {
    struct upload *u = data;
    enum rc rc = RC_OK;
    if (u->dataset.bytes == 0) rc = err_set(e, RC_INVALID, "the dataset is empty");
    if (rc == RC_OK && !utf8_ended(&u->utf8)) rc = not_text(u, e);
    if (rc != RC_OK) {
        upload_abort(u);
        return rc;
    }
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&u->hash, sizeof digest, digest);
    hex(digest, sizeof digest, u->dataset.sha256);
    u->dataset.created_at = time_now_ms();
    close(u->fd);
    u->fd = -1;
    u->request = r;
    request_defer(r, &(struct deferral){.cancel = forget_request, .data = u});
    dataset_put(u->app->store, &u->dataset, u->path, on_stored, u);
    return RC_OK;
}

static enum rc open_upload(struct app *app, struct upload *u, struct err *e) {
    u->path = xasprintf("%s/.upload-XXXXXX", store_datasets(app->store));
    u->fd = mkostemp(u->path, O_CLOEXEC);
    return u->fd >= 0 ? RC_OK : err_errno(e, "cannot store the upload");
}

static enum rc check_name(const char *name, struct err *e) {
    if (dataset_name_valid(name)) return RC_OK;
    return err_set(e, RC_INVALID,
                   "a dataset's name has 1 to %d of the characters A-Z a-z 0-9 . _ - and does not begin with a dot",
                   DATASET_NAME_MAX);
}

static enum rc put_dataset(struct request *r, struct err *e) {
    static const struct body_sink sink = {upload_write, upload_finish, upload_abort};
    const char *name = request_param(r, "name");
    TRY(check_name(name, e));
    struct upload *u = xcalloc(1, sizeof *u);
    u->app = request_app(r);
    enum rc rc = open_upload(u->app, u, e);
    if (rc != RC_OK) {
        upload_free(u);
        return rc;
    }
    memcpy(u->dataset.name, name, strlen(name) + 1);
    sha256_init(&u->hash);
    request_receive(r, &sink, u);
    return RC_OK;
}

/* ---- reading ---- */

static enum rc respond_content(struct request *r, const struct dataset *d, struct err *e) {
    char *path = dataset_path(store_datasets(request_app(r)->store), d->sha256);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    free(path);
    if (fd < 0 || fstat(fd, &info) != 0) {
        err_errno(e, "cannot read the dataset %s", d->name);
        if (fd >= 0) close(fd);
        return e->rc;
    }
    respond_file(r, "text/plain; charset=utf-8", fd, (size_t)info.st_size);
    return RC_OK;
}

struct dataset_query {
    bool content;
};
static const struct field dataset_query_fields[] = {
    {.name = "content", .type = FIELD_BOOL, .offset = offsetof(struct dataset_query, content)},
    {0},
};
static const struct schema dataset_query_schema = {
    .name = "dataset_query", .fields = dataset_query_fields, .size = sizeof(struct dataset_query)};

/* The text itself with ?content or Accept: text/plain. */
static enum rc get_dataset(struct request *r, struct err *e) {
    struct dataset d;
    struct dataset_query query = {0};
    TRY(request_decode_query(r, &query, e));
    TRY(dataset_get(store_reader(request_app(r)->store), request_param(r, "name"), &d, e));
    bool content = query.content || request_accepts(r, "text/plain");
    char etag[SHA256_HEX_SIZE + 8];
    snprintf(etag, sizeof etag, "\"%s%s\"", d.sha256, content ? "-text" : "");
    respond_header(r, "Vary", "Accept");
    if (respond_not_modified(r, etag)) return RC_OK;
    if (content) return respond_content(r, &d, e);
    respond_json(r, 200, dataset_json(&d));
    return RC_OK;
}

struct list_query {
    int64_t limit;
    const char *cursor;
};
static void list_defaults(void *object) {
    ((struct list_query *)object)->limit = LIST_DEFAULT;
}
static const struct field list_query_fields[] = {
    {.name = "limit", .type = FIELD_INT, .offset = offsetof(struct list_query, limit), .min = 1, .max = LIST_MAX},
    {.name = "cursor", .type = FIELD_STRING, .offset = offsetof(struct list_query, cursor)},
    {0},
};
static const struct schema list_query_schema = {
    .name = "list_query", .fields = list_query_fields, .size = sizeof(struct list_query), .defaults = list_defaults};

static void append_dataset(void *ctx, const struct dataset *d) {
    json_array_append_new(ctx, dataset_json(d));
}

static enum rc list_datasets(struct request *r, struct err *e) {
    struct list_query query;
    TRY(request_decode_query(r, &query, e));
    if (query.cursor != NULL && !dataset_name_valid(query.cursor))
        return err_at(e, "?cursor", RC_INVALID, "is not a cursor that was handed out");
    json_t *items = json_array();
    /* One more than asked for tells whether there is a next page. */
    enum rc rc =
        dataset_list(store_reader(request_app(r)->store), query.cursor, (int)query.limit + 1, append_dataset, items, e);
    if (rc != RC_OK) {
        json_decref(items);
        return rc;
    }
    json_t *next = json_null();
    if (json_array_size(items) > (size_t)query.limit) {
        json_array_remove(items, (size_t)query.limit);
        const json_t *last = json_array_get(items, (size_t)query.limit - 1);
        next = json_incref(json_object_get(last, "name"));
    }
    respond_json(r, 200, json_pack("{s:o, s:o}", "items", items, "next", next));
    return RC_OK;
}

/* ---- removal ---- */

struct removal {
    struct request *request;
};

static void forget_removal(struct request *r, void *data) {
    (void)r;
    ((struct removal *)data)->request = NULL;
}

static void on_deleted(void *ctx, const struct err *e) {
    struct removal *removal = ctx;
    if (removal->request != NULL && e->rc != RC_OK)
        respond_error(removal->request, e);
    else if (removal->request != NULL)
        respond_empty(removal->request, 204);
    free(removal);
}

static enum rc delete_dataset(struct request *r, struct err *e) {
    struct removal *removal = xcalloc(1, sizeof *removal);
    (void)e;
    removal->request = r;
    request_defer(r, &(struct deferral){.cancel = forget_removal, .data = removal});
    dataset_delete(request_app(r)->store, request_param(r, "name"), on_deleted, removal);
    return RC_OK;
}

const struct route datasets_routes[] = {
    {.method = "GET",
     .pattern = "/v1/datasets",
     .id = "listDatasets",
     .handler = list_datasets,
     .query = &list_query_schema},
    {.method = "PUT",
     .pattern = "/v1/datasets/{name}",
     .id = "putDataset",
     .handler = put_dataset,
     .body_type = BODY_STREAM},
    {.method = "GET",
     .pattern = "/v1/datasets/{name}",
     .id = "getDataset",
     .handler = get_dataset,
     .query = &dataset_query_schema,
     .produces = "application/json, text/plain"},
    {.method = "DELETE", .pattern = "/v1/datasets/{name}", .id = "deleteDataset", .handler = delete_dataset},
    {0},
};
