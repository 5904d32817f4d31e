"""The documentation site: its pictures, and the pages that are made from the code."""
