-- Create the tables of the source: customers, terminals, transactions, fraud_reports.
-- Role:  bank
-- Usage: bash/stack.sh up   (runs it in the database bank; twice is harmless)
-- Text with checks, not char(n): the padding of char(n) differs between Postgres, Parquet and Hive.
CREATE TABLE IF NOT EXISTS bank.customers (
    customer_id bigint PRIMARY KEY,
    customer_name text NOT NULL CHECK (char_length(customer_name) BETWEEN 1 AND 200),
    email text CHECK (email LIKE '%_@_%' AND char_length(email) <= 254),
    country text NOT NULL CHECK (country ~ '^[A-Z]{2}$'),
    updated_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS bank.terminals (
    terminal_id bigint PRIMARY KEY,
    terminal_name text NOT NULL CHECK (char_length(terminal_name) BETWEEN 1 AND 200),
    country text NOT NULL CHECK (country ~ '^[A-Z]{2}$'),
    category text NOT NULL CHECK (char_length(category) BETWEEN 1 AND 100),
    updated_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS bank.transactions (
    transaction_id bigint PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES bank.customers,
    terminal_id bigint NOT NULL REFERENCES bank.terminals,
    transacted_at timestamptz NOT NULL,
    amount numeric(12, 2) NOT NULL CHECK (amount >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    channel text NOT NULL CHECK (channel IN ('chip', 'contactless', 'magstripe', 'online', 'phone')),
    device text CHECK (char_length(device) BETWEEN 1 AND 100),
    updated_at timestamptz NOT NULL
);

-- No foreign key: a report may come before its transaction.
CREATE TABLE IF NOT EXISTS bank.fraud_reports (
    transaction_id bigint PRIMARY KEY,
    reported_at timestamptz NOT NULL,
    is_fraud boolean NOT NULL,
    scenario smallint CHECK (scenario > 0),
    updated_at timestamptz NOT NULL
);

-- Decisions of analysts (api/alerts.py); nothing else of the source.
GRANT SELECT, INSERT, UPDATE ON bank.fraud_reports TO api;

COMMENT ON TABLE bank.customers IS 'Card holders, one row a customer';
COMMENT ON COLUMN bank.customers.customer_id IS 'Key from the core banking system';
COMMENT ON COLUMN bank.customers.customer_name IS 'Full name; personal';
COMMENT ON COLUMN bank.customers.email IS 'E-mail address, where known; personal';
COMMENT ON COLUMN bank.customers.country IS 'Country of residence, ISO 3166-1 alpha-2';
COMMENT ON COLUMN bank.customers.updated_at IS 'Moment of the last write, by the server''s clock; set by a trigger';

COMMENT ON TABLE bank.terminals IS 'Points of sale and web shops, one row a terminal';
COMMENT ON COLUMN bank.terminals.terminal_id IS 'Key from the acquirer';
COMMENT ON COLUMN bank.terminals.terminal_name IS 'Name of the merchant as the card statement shows it';
COMMENT ON COLUMN bank.terminals.country IS 'Country of the merchant, ISO 3166-1 alpha-2';
COMMENT ON COLUMN bank.terminals.category IS 'Merchant category, such as grocery or travel';
COMMENT ON COLUMN bank.terminals.updated_at IS 'Moment of the last write, by the server''s clock; set by a trigger';

COMMENT ON TABLE bank.transactions IS 'Card transactions, one row a booking; corrected in place, late rows occur';
COMMENT ON COLUMN bank.transactions.transaction_id IS 'Key from the booking system';
COMMENT ON COLUMN bank.transactions.customer_id IS 'Customer whose card was used';
COMMENT ON COLUMN bank.transactions.terminal_id IS 'Terminal where it was used';
COMMENT ON COLUMN bank.transactions.transacted_at IS 'Moment of the transaction';
COMMENT ON COLUMN bank.transactions.amount IS 'Amount in units of the currency, two decimals, not negative';
COMMENT ON COLUMN bank.transactions.currency IS 'Currency, ISO 4217';
COMMENT ON COLUMN bank.transactions.channel IS 'How the card was used: chip, contactless, magstripe, online, phone';
COMMENT ON COLUMN bank.transactions.device IS 'Kind of device that held the card or the order, where known';
COMMENT ON COLUMN bank.transactions.updated_at IS 'Moment of the last write, by the server''s clock; set by a trigger';

COMMENT ON TABLE bank.fraud_reports IS 'What investigation found about a transaction; a fraud is known from reported_at on, not before';
COMMENT ON COLUMN bank.fraud_reports.transaction_id IS 'Transaction in question; may arrive before it';
COMMENT ON COLUMN bank.fraud_reports.reported_at IS 'Moment from which the finding is known';
COMMENT ON COLUMN bank.fraud_reports.is_fraud IS 'True: fraud; false: confirmed by the customer as genuine';
COMMENT ON COLUMN bank.fraud_reports.scenario IS 'Kind of fraud where known: 1 large amount, 2 compromised terminal, 3 leaked card';
COMMENT ON COLUMN bank.fraud_reports.updated_at IS 'Moment of the last write, by the server''s clock; set by a trigger';

-- What a row did wrong that breaks a check: bash/load_csv.sh gives it as the reason of a rejected line.
COMMENT ON CONSTRAINT customers_customer_name_check ON bank.customers IS 'customer_name is longer than 200 characters';
COMMENT ON CONSTRAINT customers_email_check ON bank.customers IS 'email is not an e-mail address of at most 254 characters';
COMMENT ON CONSTRAINT customers_country_check ON bank.customers IS 'country is not two capital letters (ISO 3166-1)';
COMMENT ON CONSTRAINT terminals_terminal_name_check ON bank.terminals IS 'terminal_name is longer than 200 characters';
COMMENT ON CONSTRAINT terminals_country_check ON bank.terminals IS 'country is not two capital letters (ISO 3166-1)';
COMMENT ON CONSTRAINT terminals_category_check ON bank.terminals IS 'category is longer than 100 characters';
COMMENT ON CONSTRAINT transactions_amount_check ON bank.transactions IS 'amount is negative';
COMMENT ON CONSTRAINT transactions_currency_check ON bank.transactions IS 'currency is not three capital letters (ISO 4217)';
COMMENT ON CONSTRAINT transactions_channel_check ON bank.transactions IS 'channel is none of chip, contactless, magstripe, online, phone';
COMMENT ON CONSTRAINT transactions_device_check ON bank.transactions IS 'device is longer than 100 characters';
COMMENT ON CONSTRAINT fraud_reports_scenario_check ON bank.fraud_reports IS 'scenario is not positive';
