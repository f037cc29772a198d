"""Where results go: the disk first, then MLflow, then a person's eyes."""
