"""Getting a model into memory the way a cell wants it, and checking that it is there that way.
torch lives here."""
