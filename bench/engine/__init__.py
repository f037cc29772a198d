"""What loads a model and runs it. One folder an engine; its libraries are imported nowhere else."""
