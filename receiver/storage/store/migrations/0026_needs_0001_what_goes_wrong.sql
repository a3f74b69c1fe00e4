-- All that goes wrong, and what is rare: found without a walk through all other events, by time and in the order of recording.

DROP INDEX events_troubled;
CREATE INDEX events_troubled ON events (recorded_at, id, type, source) WHERE type IN (
    'speech.failed', 'transcript.failed', 'analysis.failed', 'media.failed', 'callback.overdue', 'callback.parked', 'submission.unknown',
    'source.failing', 'source.recovered', 'destination.failing', 'destination.recovered', 'destination.disabled', 'destination.test'
);
CREATE INDEX events_troubled_position ON events (position, id, type, source) WHERE type IN (
    'speech.failed', 'transcript.failed', 'analysis.failed', 'media.failed', 'callback.overdue', 'callback.parked', 'submission.unknown',
    'source.failing', 'source.recovered', 'destination.failing', 'destination.recovered', 'destination.disabled', 'destination.test'
);
