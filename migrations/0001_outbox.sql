-- The outbox, its streams, the relay's cursors and parked events.
--
-- `events_xid` serves both branches of the reading statement, with `id` in it as an index-only scan; `events_stream` serves
-- "this stream since n". Nothing is unique on `event_id` (random writes) or `sequence` (`outbox.emit` guarantees it).
-- No later migration may rewrite `outbox.cursors`: its `xmin` is the evidence that a cursor was saved here.
create schema if not exists outbox;

create table if not exists outbox.events (
  id bigint generated always as identity (cache 1) primary key,
  xid xid8 not null default pg_current_xact_id(),
  created_at timestamptz not null default clock_timestamp(),
  sequence bigint check (sequence > 0),
  event_id uuid not null default gen_random_uuid(),
  previous_event_id uuid,
  aggregate_type text not null,
  aggregate_id text not null,
  event_type text not null,
  payload jsonb,
  payload_bytes bytea,
  constraint one_payload check (payload is null or payload_bytes is null),
  headers jsonb not null default '{}' constraint headers_object check (jsonb_typeof(headers) = 'object'),
  constraint headers_reserved check (not headers ?| array['id', 'type', 'aggregate-type', 'aggregate-id', 'sequence', 'previous-event-id'])
) with (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
create index if not exists events_xid on outbox.events (xid, id);
create index if not exists events_stream on outbox.events (aggregate_type, aggregate_id, id);

create table if not exists outbox.streams (
  aggregate_type text,
  aggregate_id text,
  sequence bigint not null,
  last_event_id uuid not null,
  previous_event_id uuid,
  changed_at timestamptz not null default clock_timestamp(),
  primary key (aggregate_type, aggregate_id)
) with (fillfactor = 70);

create table if not exists outbox.cursors (
  outbox text,
  lane smallint check (lane >= 0),
  lanes smallint not null check (lanes between 1 and 256),
  s pg_snapshot not null,
  t pg_snapshot,
  after bigint,
  constraint one_place check ((t is null) = (after is null)),  -- written together
  epoch bigint not null default 0,
  owner text,
  lease_until timestamptz,
  saved_xid xid8 not null default pg_current_xact_id(),
  saved_at timestamptz not null default clock_timestamp(),
  saved_lsn pg_lsn not null default pg_current_wal_insert_lsn(),
  system_id bigint not null,
  database_oid oid not null,
  timeline text not null,
  kafka_cluster text,
  primary key (outbox, lane)
) with (fillfactor = 20);

create table if not exists outbox.parked (
  outbox text,
  lane smallint not null,
  like outbox.events,
  place bigint generated always as identity,  -- order of parking
  cause text not null check (cause in ('rejection', 'follows')),
  code text,
  reason text,
  parked_at timestamptz not null default clock_timestamp(),
  attempts int not null default 1,
  decision text check (decision in ('retry', 'discard')),
  decided_by text,
  settled_at timestamptz,
  primary key (outbox, id, event_id)
);
create index if not exists parked_stream on outbox.parked (outbox, lane, aggregate_type, aggregate_id, place) where settled_at is null;

do $$ begin
  if not exists (select from pg_roles where rolname = 'outbox_writer') then create role outbox_writer nologin; end if;
  if not exists (select from pg_roles where rolname = 'outbox_relay') then create role outbox_relay nologin; end if;
end $$;
