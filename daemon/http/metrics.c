#include <inttypes.h>
#include <stdio.h>

#include "daemon/http/internal.h"

static const int slot_status[METRICS_SLOTS] = {200, 201, 202, 204, 304, 400, 403, 404, 405, 406,
                                               409, 411, 413, 415, 421, 422, 500, 503, 507, 0};

void metrics_count(struct server *s, const struct request *r) {
    size_t route = r->match.route != NULL ? r->match.index : s->n_routes, slot = 0;
    while (slot_status[slot] != 0 && slot_status[slot] != (int)r->status)
        slot++;
    s->counts[route * METRICS_SLOTS + slot]++;
}

static void write_route(const struct server *s, size_t index, const char *id, struct strbuf *out) {
    for (size_t slot = 0; slot < METRICS_SLOTS; slot++) {
        uint64_t count = s->counts[index * METRICS_SLOTS + slot];
        if (count == 0) continue;
        char status[16] = "other";
        if (slot_status[slot] != 0) snprintf(status, sizeof status, "%d", slot_status[slot]);
        strbuf_printf(out, "hsaqd_http_requests_total{route=\"%s\",status=\"%s\"} %" PRIu64 "\n", id, status, count);
    }
}

void server_metrics(const struct server *s, struct strbuf *out) {
    strbuf_puts(out, "# HELP hsaqd_http_requests_total Requests answered, by route and status.\n"
                     "# TYPE hsaqd_http_requests_total counter\n");
    size_t index = 0;
    for (const struct route *const *table = s->options.routes; *table != NULL; table++) {
        for (const struct route *route = *table; route->method != NULL; route++)
            write_route(s, index++, route->id, out);
    }
    write_route(s, index, "none", out);
    strbuf_printf(out,
                  "# HELP hsaqd_http_connections Open connections.\n# TYPE hsaqd_http_connections gauge\n"
                  "hsaqd_http_connections %zu\n"
                  "# HELP hsaqd_http_streams Streamed answers under way.\n# TYPE hsaqd_http_streams gauge\n"
                  "hsaqd_http_streams %zu\n",
                  s->n_connections, s->n_streams);
}
