"""Prompts: files, conversations and chat templates as token ids."""
