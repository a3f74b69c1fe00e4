-- What a refused callback lacked: each kind is trimmed apart, so that one does not push out another.

ALTER TABLE rejections ADD COLUMN kind TEXT NOT NULL DEFAULT 'wrong';
