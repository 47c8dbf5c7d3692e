#include "daemon/jobs/hub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "daemon/store/jobs.h"

enum { RECENT = 1024 };

struct progress {
    char job[ID_SIZE];
    json_t *json; /* what the job object shows */
    char *line;   /* the event's data */
    int64_t version;
    struct progress *next;
};

/* Subscribers that have caught up read `recent`; those behind it, the database. */
struct hub {
    struct store *store;
    struct subscription *first;
    size_t subscribers;
    struct event recent[RECENT]; /* ring of the events published last; id 0: not used yet */
    size_t recent_next;
    int64_t newest, forgotten; /* ids: the last published; all after this one are in `recent` */
    struct progress *progress;
    int64_t progress_version;
    bool shutdown;
};

struct subscription {
    struct hub *hub;
    char job[ID_SIZE];     /* "": all */
    int64_t seq, position; /* delivered up to: in its job; over all (-1: not known yet) */
    int64_t progress_seen;
    bool may_have_ended, said_shutdown;
    struct event current; /* what hub_next handed out */
    void (*wake)(void *ctx);
    void *ctx;
    struct subscription *prev, *next;
};

struct hub *hub_new(void) {
    return xcalloc(1, sizeof(struct hub));
}

static void progress_free(struct progress *p) {
    json_decref(p->json);
    free(p->line);
    free(p);
}

void hub_free(struct hub *h) {
    if (!h) return;
    for (size_t i = 0; i < RECENT; i++)
        event_release(&h->recent[i]);
    for (struct progress *p = h->progress, *next; p; p = next) {
        next = p->next;
        progress_free(p);
    }
    free(h);
}

enum rc hub_set_store(struct hub *h, struct store *s, struct err *e) {
    h->store = s;
    TRY(event_last(store_reader(s), &h->newest, e));
    h->forgotten = h->newest;
    return RC_OK;
}

struct subscription *hub_subscribe(struct hub *h, const char *job, int64_t after, void (*wake)(void *ctx), void *ctx) {
    struct subscription *s = xcalloc(1, sizeof *s);

    *s = (struct subscription){.hub = h, .wake = wake, .ctx = ctx, .position = -1, .may_have_ended = true};
    if (job) {
        snprintf(s->job, sizeof s->job, "%s", job);
        s->seq = after;
    } else {
        s->position = after;
    }
    s->next = h->first;
    if (s->next) s->next->prev = s;
    h->first = s;
    h->subscribers++;
    return s;
}

void hub_unsubscribe(struct subscription *s) {
    struct hub *h = s->hub;

    *(s->prev ? &s->prev->next : &h->first) = s->next;
    if (s->next) s->next->prev = s->prev;
    h->subscribers--;
    event_release(&s->current);
    free(s);
}

size_t hub_subscribers(const struct hub *h) {
    return h->subscribers;
}

static bool concerns(const struct subscription *s, const char *job) {
    return !s->job[0] || !strcmp(s->job, job);
}

/* A wake may end its own subscription, no other. */
static void wake_all(struct hub *h, const char *job) {
    for (struct subscription *s = h->first, *next; s; s = next) {
        next = s->next;
        if (!job || concerns(s, job)) s->wake(s->ctx);
    }
}

static void copy_event(struct event *to, const struct event *from) {
    event_release(to);
    *to = *from;
    to->data = xstrdup(from->data);
}

void hub_publish(void *hub, const struct event *event) {
    struct hub *h = hub;
    struct event *slot = &h->recent[h->recent_next];

    if (slot->id) h->forgotten = slot->id;
    copy_event(slot, event);
    h->recent_next = (h->recent_next + 1) % RECENT;
    h->newest = event->id;
    wake_all(h, event->job);
}

void hub_shutdown(struct hub *h) {
    h->shutdown = true;
    wake_all(h, NULL);
}

/* The oldest of the recent events after `position`, going back from the newest. */
static const struct event *recent_after(const struct hub *h, const struct subscription *s) {
    const struct event *found = NULL;

    for (size_t i = 1; i <= RECENT; i++) {
        const struct event *event = &h->recent[(h->recent_next + RECENT - i) % RECENT];
        if (!event->id || event->id <= s->position) break;
        if (concerns(s, event->job)) found = event;
    }
    return found;
}

/* Leaves the next durable event in s->current; id 0: none. */
static enum rc take_durable(struct subscription *s, bool ask_database, struct err *e) {
    struct hub *h = s->hub;
    const struct event *recent;

    event_release(&s->current);
    s->current.id = 0;
    if (!ask_database && s->position >= h->forgotten) {
        recent = recent_after(h, s);
        if (recent) copy_event(&s->current, recent);
    } else if (s->job[0]) {
        TRY(event_after(store_reader(h->store), s->job, s->seq, &s->current, e));
    } else {
        TRY(event_after(store_reader(h->store), NULL, s->position, &s->current, e));
    }
    if (s->current.id) {
        s->seq = s->current.seq;
        s->position = s->current.id;
        s->may_have_ended |= !strcmp(s->current.type, "state");
    } else if (s->position < h->newest) {
        s->position = h->newest;
    }
    return RC_OK;
}

/* Whether the job is over. What is committed but not yet published must still be delivered first. */
static enum rc check_end(struct subscription *s, bool *ended, struct err *e) {
    enum job_state state;
    int64_t version;

    *ended = false;
    if (!s->job[0] || !s->may_have_ended) return RC_OK;
    enum rc rc = job_brief(store_reader(s->hub->store), s->job, &state, &version, e);
    if (rc != RC_OK && rc != RC_NOT_FOUND) return rc;
    if (rc == RC_OK && !job_ended(state)) {
        s->may_have_ended = false;
        return RC_OK;
    }
    TRY(take_durable(s, true, e));
    *ended = s->current.id == 0;
    return RC_OK;
}

/* The oldest progress that this subscription has not had. */
static const struct progress *next_progress(const struct subscription *s) {
    const struct progress *found = NULL;

    for (const struct progress *p = s->hub->progress; p; p = p->next)
        if (p->version > s->progress_seen && concerns(s, p->job) && (!found || p->version < found->version)) found = p;
    return found;
}

static void hand_out(const struct subscription *s, struct hub_event *out) {
    out->id = s->job[0] ? s->current.seq : s->current.id;
    out->type = s->current.type;
    out->data = s->current.data;
}

static void hand_out_progress(struct subscription *s, const struct progress *p, struct hub_event *out) {
    s->progress_seen = p->version;
    *out = (struct hub_event){.type = "progress", .data = p->line};
}

enum rc hub_next(struct subscription *s, struct hub_event *out, enum hub_next *next, struct err *e) {
    const struct progress *progress;
    bool ended = false;

    *next = HUB_EVENT;
    TRY(take_durable(s, false, e));
    if (!s->current.id) {
        progress = next_progress(s);
        if (progress && !s->hub->shutdown) {
            hand_out_progress(s, progress, out);
            return RC_OK;
        }
        TRY(check_end(s, &ended, e));
    }
    if (s->current.id) {
        hand_out(s, out);
    } else if (ended || s->said_shutdown) {
        *next = HUB_END;
    } else if (s->hub->shutdown) {
        s->said_shutdown = true;
        *out = (struct hub_event){.type = "shutdown", .data = "{\"reason\":\"the daemon is stopping\"}"};
    } else {
        *next = HUB_WAIT;
    }
    return RC_OK;
}

static struct progress *find_progress(const struct hub *h, const char *job) {
    for (struct progress *p = h->progress; p; p = p->next)
        if (!strcmp(p->job, job)) return p;
    return NULL;
}

static struct progress *make_progress(struct hub *h, const char *job) {
    struct progress *p = find_progress(h, job);

    if (p) {
        json_decref(p->json);
        free(p->line);
        return p;
    }
    p = xcalloc(1, sizeof *p);
    snprintf(p->job, sizeof p->job, "%s", job);
    p->next = h->progress;
    h->progress = p;
    return p;
}

void hub_progress(struct hub *h, const struct msg_progress *m) {
    struct progress *p = make_progress(h, m->job);
    json_t *data;

    p->json = json_pack("{s:s, s:I, s:I, s:s, s:o, s:o}", "phase", m->phase, "done", (json_int_t)m->done, "total",
                        (json_int_t)m->total, "unit", m->unit, "rate", m->rate > 0 ? json_real(m->rate) : json_null(),
                        "eta_seconds", m->eta_seconds >= 0 ? json_real(m->eta_seconds) : json_null());
    data = json_pack("{s:s}", "job", m->job);
    json_object_update(data, p->json);
    p->line = json_line(data);
    json_decref(data);
    p->version = ++h->progress_version;
    wake_all(h, m->job);
}

void hub_progress_end(struct hub *h, const char *job) {
    for (struct progress **link = &h->progress; *link; link = &(*link)->next)
        if (!strcmp((*link)->job, job)) {
            struct progress *p = *link;
            *link = p->next;
            progress_free(p);
            return;
        }
}

json_t *hub_progress_get(const struct hub *h, const char *job, int64_t *version) {
    const struct progress *p = find_progress(h, job);

    *version = p ? p->version : 0;
    return p ? json_incref(p->json) : NULL;
}
