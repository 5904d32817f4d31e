"""The audit on models whose hidden behaviours are known, beside what one would do without it."""
