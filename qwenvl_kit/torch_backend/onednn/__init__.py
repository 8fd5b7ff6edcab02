"""Run the model's linear layers on oneDNN's prepacked weights (CPU)."""
