-- outbox.emit(), and what the two roles may do.
--
-- Roles: grant `outbox_writer` to the role of the application, `outbox_relay` to the role of the relay
-- (and `pg_monitor`, without which the relay cannot say whose transaction is holding events back).
create or replace function outbox.emit(
  aggregate_type text, aggregate_id text, event_type text, payload jsonb default null, headers jsonb default '{}',
  expected bigint default null, event_id uuid default gen_random_uuid(), payload_bytes bytea default null
) returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare n bigint; p uuid;
begin
  insert into outbox.streams as s (aggregate_type, aggregate_id, sequence, last_event_id) values ($1, $2, 1, $7)
  on conflict (aggregate_type, aggregate_id) do update
    set sequence = s.sequence + 1, previous_event_id = s.last_event_id, last_event_id = excluded.last_event_id, changed_at = excluded.changed_at
  returning s.sequence, s.previous_event_id into n, p;  -- holds the stream's row lock from here on
  if n <> $6 then
    raise exception 'stream %/% is at sequence %, expected to write %', $1, $2, n - 1, $6 using errcode = 'OB001';
  end if;
  insert into outbox.events (aggregate_type, aggregate_id, event_type, payload, payload_bytes, headers, event_id, sequence, previous_event_id)
  values ($1, $2, $3, $4, $8, coalesce($5, '{}'), $7, n, p);  -- later statement: the id is drawn under the lock
  return n;
end $$;

revoke all on function outbox.emit from public;
revoke all on outbox.events, outbox.streams, outbox.cursors, outbox.parked from outbox_writer;
grant usage on schema outbox to outbox_writer, outbox_relay;

-- The application: writes events, reads back only what an ORM asks for after an insert; payloads stay unread.
grant select (id, event_id, created_at) on outbox.events to outbox_writer;
grant insert (event_id, aggregate_type, aggregate_id, event_type, payload, payload_bytes, headers) on outbox.events to outbox_writer;
grant execute on function outbox.emit to outbox_writer;
grant select on outbox.streams to outbox_writer, outbox_relay;

-- The relay: reads events, owns its cursors and what it parks.
grant select, delete on outbox.events to outbox_relay;
grant select on sequence outbox.events_id_seq to outbox_relay;  -- is the sequence behind its table?
grant select, insert, update, delete on outbox.cursors, outbox.parked to outbox_relay;
grant select on outbox._sqlx_migrations to outbox_relay;        -- is the schema the one that this binary knows?
