-- Create the warehouse's own records: runs, batches, rejects, gaps, reconciliations, checks, erasures.
-- Usage: bash/stack.sh up   (runs it in the database warehouse, as its owner; twice is harmless)
CREATE SCHEMA IF NOT EXISTS ops;

CREATE TABLE IF NOT EXISTS ops.runs (
    run_id text PRIMARY KEY,
    verb text NOT NULL,
    arguments text NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'succeeded', 'failed')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    seconds double precision,
    error text
);
CREATE INDEX IF NOT EXISTS runs_by_verb ON ops.runs (verb, started_at);

CREATE TABLE IF NOT EXISTS ops.batches (
    run_id text NOT NULL REFERENCES ops.runs,
    table_name text NOT NULL,
    batch bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('full', 'incremental', 'deletes', 'repair')),
    range_from timestamptz,
    next_from timestamptz,
    row_count bigint NOT NULL,
    rejected_count bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL,
    seconds double precision NOT NULL,
    state text NOT NULL CHECK (state IN ('published', 'failed', 'dropped')),
    error text,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS batches_by_table ON ops.batches (table_name, batch);

CREATE TABLE IF NOT EXISTS ops.rejects (
    reject_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    run_id text NOT NULL REFERENCES ops.runs,
    table_name text NOT NULL,
    -- where it came from: a file's name, or the source table
    origin text NOT NULL,
    -- the line in that file; NULL where the row came from a table
    line bigint,
    key text,
    column_name text,
    reason text NOT NULL,
    -- the row as received, card numbers masked
    payload text,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- when a message of the stream lane was sent again
    replayed_at timestamptz
);
ALTER TABLE ops.rejects ADD COLUMN IF NOT EXISTS replayed_at timestamptz;
CREATE UNIQUE INDEX IF NOT EXISTS rejects_once ON ops.rejects (
    table_name, origin, coalesce(line, -1), coalesce(key, ''), coalesce(column_name, ''), md5(reason || coalesce(payload, ''))
);

-- What Kafka removed before a query of the stream job read it.
CREATE TABLE IF NOT EXISTS ops.gaps (
    run_id text NOT NULL REFERENCES ops.runs,
    query text NOT NULL,
    topic text NOT NULL,
    -- another topic of the same name has another one
    topic_id text NOT NULL,
    partition integer NOT NULL,
    first_offset bigint NOT NULL,
    -- NULL where the topic was made anew: nobody knows how far the old one went
    last_offset bigint,
    -- marks of transactions counted in
    message_count bigint,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- when the notifier recorded it for each channel
    told_at timestamptz,
    PRIMARY KEY (query, topic, topic_id, partition, first_offset)
);
CREATE UNIQUE INDEX IF NOT EXISTS gaps_without_end_once ON ops.gaps (query, topic, topic_id, partition) WHERE last_offset IS null;
CREATE INDEX IF NOT EXISTS gaps_untold ON ops.gaps (found_at) WHERE told_at IS null;

CREATE TABLE IF NOT EXISTS ops.reconciliations (
    run_id text NOT NULL REFERENCES ops.runs,
    table_name text NOT NULL,
    part text NOT NULL,
    source_rows bigint NOT NULL,
    loaded_rows bigint NOT NULL,
    rejected_rows bigint NOT NULL,
    pending_rows bigint NOT NULL,
    is_equal boolean NOT NULL,
    detail text,
    reconciled_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS ops.checks (
    run_id text NOT NULL REFERENCES ops.runs,
    table_name text NOT NULL,
    check_name text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('error', 'warn')),
    is_passed boolean NOT NULL,
    observed text,
    checked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS ops.erasures (
    run_id text NOT NULL REFERENCES ops.runs,
    table_name text NOT NULL,
    -- of the person in that table; nothing else about him or her stands here
    key text NOT NULL,
    -- where something was erased, or `verified`: every place was searched and nothing is left
    place text NOT NULL,
    -- batches, snapshots, rejects, records, files or events; of `verified` the files that were searched
    item_count bigint NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS erasures_by_key ON ops.erasures (table_name, key, erased_at);
