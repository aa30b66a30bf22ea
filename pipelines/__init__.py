"""Beam pipelines: one file a stage that runs over parts."""
