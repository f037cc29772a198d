"""Results for people: terminal, page, pictures, sentences. Nothing is computed here."""
