"""The work itself: callbacks in, events out, results polled, old data removed."""
