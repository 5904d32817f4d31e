"""All that knows a transformer: models, their blocks, prompts, edits and decoding."""
