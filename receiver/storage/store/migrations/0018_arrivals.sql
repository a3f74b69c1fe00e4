-- How a callback came: its headers without secrets, its URL's token, when each part of it was done. And when a short token was made.

ALTER TABLE callbacks ADD COLUMN arrival {blob};
ALTER TABLE callback_tokens ADD COLUMN issued_at BIGINT;
