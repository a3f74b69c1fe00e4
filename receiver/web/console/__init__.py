"""The web console: pages that show what came in, where it went and why not, and let people mend it."""
