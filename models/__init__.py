"""The embedded checkpoint: `lite/` holds the heads of `vlmdata.lite`, and how they were made."""
