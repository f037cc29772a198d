"""Pure functions from raw readings to numbers: stdlib and numpy only, importable without torch."""
