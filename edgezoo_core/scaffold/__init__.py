"""A new plugin, drafted: what `edgezoo new-plugin` knows, guesses and writes."""
