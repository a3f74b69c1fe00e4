-- The pickups of one source, newest first, found without a walk through all others.

CREATE INDEX pickups_source ON pickups (source, id);
