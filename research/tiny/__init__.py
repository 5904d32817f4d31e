"""Tiny random models of real architectures, and a tokenizer for them; all is built in memory."""
