/* The store: group commit with operations that fail alone, a disk that refuses, migrations, ids, resumable events. */
#include "tests/unit/cmocka_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "base/mem.h"
#include "daemon/jobs/hub.h"
#include "daemon/store/datasets.h"
#include "daemon/store/jobs.h"
#include "daemon/store/migrate.h"
#include "daemon/store/rows.h"
#include "daemon/store/store.h"

static uv_loop_t loop;
static struct store *store;
static struct hub *hub;
static char folder[64], fault_path[80];

static int setup(void **unused) {
    struct err e;
    (void)unused;
    strcpy(folder, "/tmp/hsaqd-test-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(fault_path, sizeof fault_path, "%s/fault", folder);
    setenv("HSAQD_TEST_FAULT", fault_path, 1);
    uv_loop_init(&loop);
    hub = hub_new();
    if (store_open(folder, &loop, hub_publish, hub, &store, &e) != RC_OK) return -1;
    return hub_set_store(hub, store, &e) == RC_OK ? 0 : -1;
}

static int teardown(void **unused) {
    char *command = xasprintf("rm -rf %s", folder);
    (void)unused;
    store_close(store);
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    hub_free(hub);
    int code = system(command);
    free(command);
    return code;
}

/* ---- operations ---- */

struct op {
    struct write_op op;
    char id[ID_SIZE];
    enum job_action action;
    int64_t index;
    enum rc rc;
    bool done;
};

static void on_done(struct write_op *w, const struct err *e) {
    struct op *op = (struct op *)w;
    op->rc = e->rc;
    op->done = true;
}

static enum rc insert_job(struct db *db, struct write_op *w, struct err *e) {
    struct op *op = (struct op *)w;
    struct job_insert insert = {
        .job = {.kind = "eval", .spec = "{}", .owner = "local", .lane = "device", .created_at = 1}};
    memcpy(insert.job.id, op->id, sizeof op->id);
    return job_insert(db, &w->events, &insert, e);
}

static enum rc change_job(struct db *db, struct write_op *w, struct err *e) {
    struct op *op = (struct op *)w;
    json_t *loss = json_pack("{s:s}", "cause", "a test");
    enum job_state state;
    enum rc rc =
        job_change(db, &w->events, &(struct job_change){.job = op->id, .action = op->action, .loss = loss}, &state, e);
    json_decref(loss);
    return rc;
}

static enum rc insert_row(struct db *db, struct write_op *w, struct err *e) {
    struct op *op = (struct op *)w;
    json_t *data = json_pack("{s:f}", "nll", 1.0 / 3.0);
    enum rc rc = row_insert(db, op->id, "p", op->index, data, e);
    json_decref(data);
    return rc;
}

static void submit(struct op *op, enum rc (*run)(struct db *db, struct write_op *w, struct err *e)) {
    op->op = (struct write_op){.run = run, .done = on_done};
    op->done = false;
    store_submit(store, &op->op);
}

static enum rc finish(struct op *op) {
    while (!op->done)
        uv_run(&loop, UV_RUN_ONCE);
    return op->rc;
}

static enum rc run(struct op *op, enum rc (*fn)(struct db *db, struct write_op *w, struct err *e)) {
    submit(op, fn);
    return finish(op);
}

static struct op new_job(void) {
    struct op op = {0};
    struct err e;
    assert_int_equal(id_new(op.id, &e), RC_OK);
    assert_int_equal(run(&op, insert_job), RC_OK);
    return op;
}

static enum rc act(struct op *op, enum job_action action) {
    op->action = action;
    return run(op, change_job);
}

static enum job_state state_of(const struct op *op) {
    enum job_state state;
    int64_t version;
    struct err e;
    assert_int_equal(job_brief(store_reader(store), op->id, &state, &version, &e), RC_OK);
    return state;
}

/* ---- tests ---- */

static void test_ids_grow_within_a_millisecond(void **unused) {
    char before[ID_SIZE] = "", id[ID_SIZE];
    struct err e;
    (void)unused;
    for (int i = 0; i < 10000; i++) {
        assert_int_equal(id_new(id, &e), RC_OK);
        assert_true(id_valid(id) && strcmp(before, id) < 0);
        memcpy(before, id, sizeof id);
    }
    id_continue_after("7ZZZZZZZZZ0000000000000000"); /* the clock was set back */
    assert_int_equal(id_new(id, &e), RC_OK);
    assert_string_equal(id, "7ZZZZZZZZZ0000000000000001");
    id_continue_after("00000000000000000000000000");
}

static void test_an_operation_that_fails_leaves_its_batch_alone(void **unused) {
    struct op job = new_job(), rows[3];
    int64_t count;
    struct err e;
    (void)unused;
    for (int i = 0; i < 3; i++) {
        rows[i] = job;
        rows[i].index = i == 2 ? 5 : 4; /* the second is the first again */
        submit(&rows[i], insert_row);
    }
    assert_int_equal(finish(&rows[2]), RC_OK);
    assert_int_equal(rows[0].rc, RC_OK);
    assert_int_equal(rows[1].rc, RC_CONFLICT);
    assert_int_equal(rows_count(store_reader(store), job.id, &count, &e), RC_OK);
    assert_int_equal(count, 2);
}

static int times_committed;
static void count_committed(struct db *db, struct write_op *w) {
    (void)db, (void)w;
    times_committed++;
}

static enum rc insert_and_count(struct op *op) {
    op->op = (struct write_op){.run = insert_job, .committed = count_committed, .done = on_done};
    op->done = false;
    store_submit(store, &op->op);
    return finish(op);
}

static void test_what_no_rollback_undoes_waits_for_the_commit(void **unused) {
    FILE *fault = fopen(fault_path, "w");
    struct op job = {0};
    struct err e;
    (void)unused;
    assert_true(fault && fputs("ENOSPC", fault) > 0 && fclose(fault) == 0);
    assert_int_equal(id_new(job.id, &e), RC_OK);
    times_committed = 0;
    assert_int_equal(insert_and_count(&job), RC_NO_SPACE);
    assert_int_equal(times_committed, 0);
    unlink(fault_path);
    assert_int_equal(insert_and_count(&job), RC_OK);
    assert_int_equal(times_committed, 1);
    assert_int_equal(insert_and_count(&job), RC_CONFLICT); /* there already: fails alone */
    assert_int_equal(times_committed, 1);
}

static void test_a_full_disk_fails_the_write_and_not_the_store(void **unused) {
    FILE *fault = fopen(fault_path, "w");
    struct op job = {0};
    struct err e;
    (void)unused;
    assert_non_null(fault);
    fputs("ENOSPC", fault);
    fclose(fault);
    assert_int_equal(id_new(job.id, &e), RC_OK);
    assert_int_equal(run(&job, insert_job), RC_NO_SPACE);
    unlink(fault_path);
    assert_int_equal(run(&job, insert_job), RC_OK);
    assert_int_equal(state_of(&job), JOB_QUEUED);
}

/* ---- the writer held up, so that what is submitted comes into one batch ---- */

static uv_sem_t held, go_on;

static enum rc hold(struct db *db, struct write_op *w, struct err *e) {
    (void)db, (void)w, (void)e;
    uv_sem_post(&held);
    uv_sem_wait(&go_on);
    return RC_OK;
}

static void on_put(void *ctx, const struct dataset *d, bool created, const struct err *e) {
    (void)d, (void)created;
    assert_int_equal(e->rc, RC_OK);
    *(bool *)ctx = true;
}

/* A text called "d" whose content is its hash. */
static void put(const char *sha256, bool *done) {
    struct dataset d = {.name = "d", .bytes = (int64_t)strlen(sha256)};
    char *upload = xasprintf("%s/.upload-%s", store_datasets(store), sha256);
    FILE *file = fopen(upload, "w");
    assert_true(file && fputs(sha256, file) > 0 && fclose(file) == 0);
    snprintf(d.sha256, sizeof d.sha256, "%s", sha256);
    *done = false;
    dataset_put(store, &d, upload, on_put, done);
    free(upload);
}

static void wait_until(const bool *done) {
    while (!*done)
        uv_run(&loop, UV_RUN_ONCE);
}

static bool has_content(const char *sha256) {
    char *path = dataset_path(store_datasets(store), sha256);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

static enum rc insert_reader_of_old(struct db *db, struct write_op *w, struct err *e) {
    struct op *op = (struct op *)w;
    struct job_insert insert = {.job = {.kind = "eval", .spec = "{}", .owner = "local", .lane = "device"}};
    insert.job.dataset = "d";
    insert.job.dataset_sha256 = "old";
    memcpy(insert.job.id, op->id, sizeof op->id);
    return job_insert(db, &w->events, &insert, e);
}

/* The commit that took a text's last reader away is the one that fails. */
static void test_no_text_goes_that_a_rollback_brings_the_reader_of_back(void **unused) {
    struct op job = {0}, holder;
    struct dataset seen;
    struct err e;
    bool done;
    (void)unused;
    assert_true(uv_sem_init(&held, 0) == 0 && uv_sem_init(&go_on, 0) == 0);
    put("old", &done);
    wait_until(&done);
    assert_int_equal(id_new(job.id, &e), RC_OK);
    assert_int_equal(run(&job, insert_reader_of_old), RC_OK);
    put("new", &done);
    do
        assert_int_equal(dataset_get(store_reader(store), "d", &seen, &e), RC_OK);
    while (strcmp(seen.sha256, "new") != 0);
    submit(&holder, hold);
    uv_sem_wait(&held);
    job.action = ACTION_CANCEL;
    submit(&job, change_job);
    wait_until(&done); /* which asks for the old content to go */
    FILE *fault = fopen(fault_path, "w");
    assert_true(fault && fputs("ENOSPC", fault) > 0 && fclose(fault) == 0);
    uv_sem_post(&go_on);
    assert_int_equal(finish(&job), RC_NO_SPACE);
    unlink(fault_path);
    assert_int_equal(state_of(&job), JOB_QUEUED);
    assert_true(has_content("old"));
    put("newer", &done);
    wait_until(&done);
    assert_int_equal(run(&job, change_job), RC_OK);
    put("old", &done);
    wait_until(&done);
    put("newest", &done);
    wait_until(&done);
    assert_int_equal(run(&holder, NULL), RC_OK);
    assert_true(has_content("newest") && !has_content("old") && !has_content("new") && !has_content("newer"));
    uv_sem_destroy(&held);
    uv_sem_destroy(&go_on);
}

static void test_the_third_loss_fails_the_job(void **unused) {
    struct op job = new_job();
    (void)unused;
    for (int i = 1; i <= JOB_LOSSES_MAX; i++) {
        assert_int_equal(act(&job, ACTION_START), RC_OK);
        assert_int_equal(act(&job, ACTION_LOSE), RC_OK);
        assert_int_equal(state_of(&job), i < JOB_LOSSES_MAX ? JOB_QUEUED : JOB_FAILED);
    }
    assert_int_equal(act(&job, ACTION_START), RC_CONFLICT);
    assert_int_equal(act(&job, ACTION_RETRY), RC_OK);
}

static void ignore_wake(void *ctx) {
    (void)ctx;
}

/* Follows from each position: what was stored before the subscription and what comes after, each once. */
static void test_a_subscription_has_no_gap_and_no_duplicate(void **unused) {
    struct op job = new_job();
    struct subscription *all[3];
    struct hub_event event;
    enum hub_next next;
    struct err e;
    (void)unused;
    for (int i = 0; i < 3; i++)
        all[i] = hub_subscribe(hub, job.id, i, ignore_wake, NULL);
    assert_int_equal(act(&job, ACTION_START), RC_OK);
    assert_int_equal(act(&job, ACTION_CANCEL), RC_OK);
    for (int i = 0; i < 3; i++) {
        for (int seq = i + 1; seq <= 3; seq++) {
            assert_int_equal(hub_next(all[i], &event, &next, &e), RC_OK);
            assert_int_equal(next, HUB_EVENT);
            assert_int_equal(event.id, seq);
        }
        assert_int_equal(hub_next(all[i], &event, &next, &e), RC_OK);
        assert_int_equal(next, HUB_END);
        hub_unsubscribe(all[i]);
    }
}

static void test_migrations_apply_once_keep_a_copy_and_refuse_newer(void **unused) {
    const struct embedded_file one[] = {{"migrations/0001_a.sql", "CREATE TABLE a (x);", 0}, {0}};
    const struct embedded_file two[] = {one[0], {"migrations/0002_b.sql", "CREATE TABLE b (x);", 0}, {0}};
    const struct embedded_file bad[] = {two[0], two[1], {"migrations/0003_c.sql", "CREATE TABLE c (x); no", 0}, {0}};
    char path[80], copy[120];
    struct db db, old;
    struct err e;
    int64_t count;
    (void)unused;
    snprintf(path, sizeof path, "%s/m.db", folder);
    snprintf(copy, sizeof copy, "%s.before-0002", path);
    assert_int_equal(db_open(&db, path, DB_WRITER, &e), RC_OK);
    assert_int_equal(migrate(&db, path, one, &e), RC_OK);
    assert_int_equal(migrate(&db, path, two, &e), RC_OK);
    assert_int_equal(migrate(&db, path, two, &e), RC_OK);
    assert_int_equal(db_open(&old, copy, DB_READER, &e), RC_OK); /* as it was before */
    assert_int_equal(db_query_int(&old, &count, &e, "PRAGMA user_version", ""), RC_OK);
    assert_int_equal(count, 1);
    assert_int_equal(db_query_int(&old, &count, &e, "SELECT count(*) FROM sqlite_schema", ""), RC_OK);
    assert_int_equal(count, 1);
    db_close(&old);
    assert_int_not_equal(migrate(&db, path, bad, &e), RC_OK);
    assert_non_null(strstr(e.message, "0003_c.sql"));
    assert_int_equal(db_query_int(&db, &count, &e, "SELECT count(*) FROM sqlite_schema", ""), RC_OK);
    assert_int_equal(count, 2);
    assert_int_equal(migrate(&db, path, one, &e), RC_CONFLICT);
    db_close(&db);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_grow_within_a_millisecond),
        cmocka_unit_test(test_an_operation_that_fails_leaves_its_batch_alone),
        cmocka_unit_test(test_what_no_rollback_undoes_waits_for_the_commit),
        cmocka_unit_test(test_a_full_disk_fails_the_write_and_not_the_store),
        cmocka_unit_test(test_no_text_goes_that_a_rollback_brings_the_reader_of_back),
        cmocka_unit_test(test_the_third_loss_fails_the_job),
        cmocka_unit_test(test_a_subscription_has_no_gap_and_no_duplicate),
        cmocka_unit_test(test_migrations_apply_once_keep_a_copy_and_refuse_newer),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
