"""Which way of running a language model is best on this machine: sweep, measure, record,
compare."""

__version__ = "0.1.0"
