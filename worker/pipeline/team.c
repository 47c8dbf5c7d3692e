#include "worker/pipeline/team.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/mem.h"

struct team {
    int size;
    pthread_mutex_t one_at_a_time; /* of what goes out */
    atomic_bool failed;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    int waiting;    /* members that have come to the meeting at hand */
    unsigned round; /* meetings that have ended */
    enum rc rc;     /* of the member that failed first */
    struct err err;
};

struct member {
    struct team *team;
    const struct job *job; /* of the whole team */
    team_fn work;
    void *ctx;
    int index;
    pthread_t thread;
    bool started;
};

int team_size(const struct job *job) {
    return job->device_count > 1 ? job->device_count : 1;
}

static int64_t share(int64_t limit, int of) {
    return limit > of ? limit / of : limit > 0;
}

static struct job copy_for(const struct job *job, int member) {
    struct job own = *job;
    int size = team_size(job);
    if (size == 1) return own;
    own.device = job->devices[member];
    own.ram_limit = share(job->ram_limit, size);
    return own;
}

struct job team_job(const struct job *job, int member) {
    struct job own = copy_for(job, member);
    struct err ignored; /* a device that cannot be attached to fails at the next operation */
    (void)own.backend->attach(own.device, &ignored);
    return own;
}

bool team_failed(const struct team *team) {
    return team && atomic_load_explicit(&team->failed, memory_order_relaxed);
}

void team_lock(struct team *team) {
    if (team) pthread_mutex_lock(&team->one_at_a_time);
}

void team_unlock(struct team *team) {
    if (team) pthread_mutex_unlock(&team->one_at_a_time);
}

/* With team->lock held. */
static void note_failure(struct team *t, enum rc rc, const struct err *e) {
    if (t->rc == RC_OK) {
        t->rc = rc;
        t->err = *e;
    }
    atomic_store(&t->failed, true);
    pthread_cond_broadcast(&t->changed);
}

static void fail(struct team *t, enum rc rc, const struct err *e) {
    pthread_mutex_lock(&t->lock);
    note_failure(t, rc, e);
    pthread_mutex_unlock(&t->lock);
}

/* With team->lock held, as the last to come. */
static enum rc end_meeting(struct team *t, enum rc (*last)(void *ctx, struct err *e), void *ctx, struct err *e) {
    enum rc rc = last ? last(ctx, e) : RC_OK;
    if (rc != RC_OK) {
        note_failure(t, rc, e);
        return rc;
    }
    t->waiting = 0;
    t->round++;
    pthread_cond_broadcast(&t->changed);
    return RC_OK;
}

static enum rc wait_for_the_rest(struct team *t, struct err *e) {
    unsigned round = t->round;
    while (t->round == round && !team_failed(t))
        pthread_cond_wait(&t->changed, &t->lock);
    return t->round == round ? err_set(e, RC_CANCELLED, "another device of the job has failed") : RC_OK;
}

enum rc team_meet(struct team *t, enum rc (*last)(void *ctx, struct err *e), void *ctx, struct err *e) {
    pthread_mutex_lock(&t->lock);
    enum rc rc = ++t->waiting < t->size ? wait_for_the_rest(t, e) : end_meeting(t, last, ctx, e);
    pthread_mutex_unlock(&t->lock);
    return rc;
}

static void *run_member(void *arg) {
    struct member *m = arg;
    struct err e = {0};
    struct job own = copy_for(m->job, m->index);
    own.team = m->team;
    enum rc rc = own.backend->attach(own.device, &e);
    if (rc == RC_OK) rc = m->work(m->ctx, m->index, &own, &e);
    if (rc != RC_OK) fail(m->team, rc, &e);
    return NULL;
}

static void start_others(struct team *t, struct member *members) {
    struct err e;
    for (int i = 1; i < t->size && !team_failed(t); i++) {
        members[i].started = pthread_create(&members[i].thread, NULL, run_member, &members[i]) == 0;
        if (members[i].started) continue;
        fail(t, err_set(&e, RC_NO_MEMORY, "cannot start a thread for each of %d devices", t->size), &e);
    }
}

static void work_together(struct team *t, struct member *members) {
    start_others(t, members);
    run_member(&members[0]);
    for (int i = 1; i < t->size; i++)
        if (members[i].started) pthread_join(members[i].thread, NULL);
}

enum rc team_run(const struct job *job, team_fn work, void *ctx, struct err *e) {
    int size = team_size(job);
    if (size == 1) return work(ctx, 0, job, e);
    struct team t = {.size = size};
    struct member *members = xcalloc((size_t)size, sizeof *members);
    pthread_mutex_init(&t.one_at_a_time, NULL);
    pthread_mutex_init(&t.lock, NULL);
    pthread_cond_init(&t.changed, NULL);
    for (int i = 0; i < size; i++)
        members[i] = (struct member){.team = &t, .job = job, .work = work, .ctx = ctx, .index = i};
    work_together(&t, members);
    pthread_cond_destroy(&t.changed);
    pthread_mutex_destroy(&t.lock);
    pthread_mutex_destroy(&t.one_at_a_time);
    free(members);
    if (t.rc != RC_OK) *e = t.err;
    return t.rc;
}
