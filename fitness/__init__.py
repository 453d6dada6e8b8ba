"""What a genome is worth: data, criteria and evaluators. Knows quality; no population, no generation."""
