-- What an operator has decided about parked events: the relay that holds the lease looks once a second while anything is parked.
create index if not exists parked_decided on outbox.parked (outbox, lane, place) where settled_at is null and decision is not null;
