"""Small generators that learn from a larger one: networks, what they learn by, the training, and their file."""
