"""A data pipeline and dataset curation platform for vision-language models."""
