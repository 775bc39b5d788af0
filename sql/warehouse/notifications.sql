-- Create the notifier's state: each alert once for each channel, from its arrival to its end.
-- Usage: bash/stack.sh up   (runs it in the database warehouse, as its owner; twice is harmless)
CREATE SCHEMA IF NOT EXISTS ops;

CREATE TABLE IF NOT EXISTS ops.notifications (
    -- alert-<transaction_id>; of a message that is no alert its place, <topic>/<partition>/<offset>
    idempotency_key text NOT NULL,
    -- a name from the setting notify_file; empty for a message that is no alert
    channel text NOT NULL,
    customer_id bigint,
    state text NOT NULL CHECK (state IN ('pending', 'sent', 'quiet', 'dead')),
    attempts integer NOT NULL DEFAULT 0,
    -- why the last attempt failed: a code or the name of an error, nothing of the alert
    error text,
    -- as received, card numbers masked
    payload text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    PRIMARY KEY (idempotency_key, channel)
);
CREATE INDEX IF NOT EXISTS notifications_due ON ops.notifications (channel, next_attempt_at) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS notifications_sent ON ops.notifications (channel, customer_id, ended_at) WHERE state = 'sent';
