-- Create the schema of the source; let the extractor read it: SELECT and the start of other sessions, nothing else; let the API in.
-- Role:  postgres   (only a superuser may grant pg_read_all_stats and set another role's defaults)
-- Usage: bash/stack.sh up   (runs it in the database bank; twice is harmless)
CREATE SCHEMA IF NOT EXISTS bank AUTHORIZATION bank;
COMMENT ON SCHEMA bank IS 'The source: a bank''s customers, terminals, card transactions and fraud reports';

-- Postgres 14 still lets everybody create tables in public.
REVOKE CREATE ON SCHEMA public FROM public;
REVOKE ALL ON DATABASE bank FROM public;

GRANT CONNECT ON DATABASE bank TO extractor;
GRANT USAGE ON SCHEMA bank TO extractor;
GRANT SELECT ON ALL TABLES IN SCHEMA bank TO extractor;
ALTER DEFAULT PRIVILEGES FOR ROLE bank IN SCHEMA bank GRANT SELECT ON TABLES TO extractor;

-- Without it xact_start of other sessions is silently NULL, and the horizon of an extract would be wrong.
GRANT pg_read_all_stats TO extractor;

GRANT CONNECT ON DATABASE bank TO api;
GRANT USAGE ON SCHEMA bank TO api;
-- A decision that waits for a lock shall fail, not gather others behind it.
ALTER ROLE api IN DATABASE bank SET statement_timeout = '10s';

-- A second fence behind the missing rights: a session begins read only.
ALTER ROLE extractor IN DATABASE bank SET default_transaction_read_only = on;
