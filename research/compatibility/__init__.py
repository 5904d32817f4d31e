"""One suite of checks that every kind of model passes, or is refused by in one line."""
