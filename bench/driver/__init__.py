"""The parent process: which cell runs next, in which process, and what becomes of it. Never imports
torch."""
