"""The strict border: composed YAML becomes frozen dataclasses, or one sentence for each mistake."""
