-- Of each destination whether an event goes there and by which rule, as it was decided when the event was recorded.

ALTER TABLE events ADD COLUMN routing {blob};
