"""Runs and audits to look at and talk to in a browser; all but `melbo.explorer.web` is no web."""
