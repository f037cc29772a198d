"""Whatever touches a live model or the machine and returns raw numbers."""
