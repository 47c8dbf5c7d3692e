-- Times are milliseconds since 1970, UTC. Columns named after JSON documents hold one line of JSON.

CREATE TABLE job (
    id             TEXT PRIMARY KEY,
    kind           TEXT NOT NULL,
    label          TEXT,
    state          TEXT NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    spec           TEXT NOT NULL,              -- JSON, as the client wrote it
    owner          TEXT NOT NULL,
    priority       INTEGER NOT NULL,
    lane           TEXT NOT NULL CHECK (lane IN ('device', 'cpu')),
    device         TEXT,                       -- asked for; NULL: any
    ran_on         TEXT,                       -- the device of the last start
    model          TEXT,
    dataset        TEXT,
    dataset_sha256 TEXT,                       -- pinned at submission
    blocked        INTEGER NOT NULL,           -- dependencies that have not succeeded
    attempt        INTEGER NOT NULL DEFAULT 0, -- of the last start; 0 before the first
    losses         TEXT NOT NULL DEFAULT '[]', -- JSON: how each attempt that lost its worker ended
    model_stamp    TEXT,                       -- the model's files at the last start; rows of other files are dropped
    created_at     INTEGER NOT NULL,
    started_at     INTEGER,
    finished_at    INTEGER,
    progress       TEXT,                       -- JSON, when it last stopped running
    error          TEXT,                       -- JSON
    version        INTEGER NOT NULL DEFAULT 1  -- grows with every change
) STRICT;
CREATE INDEX job_runnable ON job (lane, priority DESC, id) WHERE state = 'queued' AND blocked = 0;
CREATE INDEX job_state ON job (state, id);
CREATE INDEX job_dataset ON job (dataset_sha256) WHERE dataset_sha256 IS NOT NULL;

CREATE TABLE job_dependency (
    job    TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    needs  TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    PRIMARY KEY (job, needs)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_dependency_needs ON job_dependency (needs);

CREATE TABLE event (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,    -- over all jobs
    job  TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    seq  INTEGER NOT NULL,                     -- within its job
    type TEXT NOT NULL,
    data TEXT NOT NULL,                        -- JSON
    UNIQUE (job, seq)
) STRICT;

CREATE TABLE result (
    job  TEXT PRIMARY KEY REFERENCES job (id) ON DELETE CASCADE,
    data TEXT NOT NULL                         -- JSON
) STRICT, WITHOUT ROWID;

-- Partial results: a job that starts again resumes after them.
CREATE TABLE row (
    job   TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    phase TEXT NOT NULL,
    idx   INTEGER NOT NULL,
    data  TEXT NOT NULL,                       -- JSON
    PRIMARY KEY (job, phase, idx)
) STRICT, WITHOUT ROWID;

-- The sensitivity cache.
CREATE TABLE drift (
    key        TEXT PRIMARY KEY,
    model      TEXT,
    linear     TEXT,
    candidate  TEXT,
    data       TEXT NOT NULL,                  -- JSON
    bytes      INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX drift_model ON drift (model);

-- Hashes of tensors, by the path, size, mtime and inode of their file.
CREATE TABLE fingerprint (
    key        TEXT PRIMARY KEY,
    model      TEXT,
    data       TEXT NOT NULL,                  -- JSON
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE dataset (
    name       TEXT PRIMARY KEY,
    sha256     TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX dataset_sha256 ON dataset (sha256);

CREATE TABLE idempotency (
    key  TEXT PRIMARY KEY,
    hash TEXT NOT NULL,                        -- SHA-256 of the request
    job  TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_job ON idempotency (job);
