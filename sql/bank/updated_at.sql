-- Let the server, and nobody else, write updated_at; and index it for incremental extracts.
-- Role:  bank
-- Usage: bash/stack.sh up   (runs it in the database bank; twice is harmless)
-- clock_timestamp(), not now(): the moment of the write, so that it never runs backwards for a row.
CREATE OR REPLACE FUNCTION bank.set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION bank.set_updated_at() IS 'Overwrites updated_at with the server''s clock, whatever the writer says';

-- Only what is missing is made: CREATE INDEX IF NOT EXISTS and ALTER TABLE lock out writers even where nothing is to do.
DO $$
DECLARE
    source regclass;
BEGIN
    FOREACH source IN ARRAY ARRAY[
        'bank.customers', 'bank.terminals', 'bank.transactions', 'bank.fraud_reports'
    ]::regclass[]
    LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = source AND tgname = 'set_updated_at') THEN
            EXECUTE format(
                'CREATE TRIGGER set_updated_at BEFORE INSERT OR UPDATE ON %s '
                'FOR EACH ROW EXECUTE FUNCTION bank.set_updated_at()',
                source
            );
            -- ALWAYS: also for writers that set session_replication_role = replica.
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER set_updated_at', source);
            EXECUTE format('CREATE INDEX ON %s (updated_at)', source);
        END IF;
    END LOOP;
END
$$;
