-- Let the partition of a day point to another folder with the same events in fewer files.
-- Parameters: day, location
-- Reads:  -      Writes: raw.events
-- Usage:  bash/maintain.sh raw.events
ALTER TABLE raw.events PARTITION (received_on = DATE '{{ day }}') SET LOCATION '{{ location }}'
