-- A row that is written can be parked too: `parked_stream` has more columns than `events_stream`, and a row of an index has 2,704 bytes at most.
-- Not valid: rows that are there are not looked at, so the lock is short.
alter table outbox.events
  drop constraint if exists stream_name,
  add constraint stream_name check (octet_length(aggregate_type) + octet_length(aggregate_id) <= 2500) not valid;
