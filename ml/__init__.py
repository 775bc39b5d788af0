"""Features, training, evaluation and scoring."""
