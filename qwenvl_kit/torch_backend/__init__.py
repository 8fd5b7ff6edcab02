"""Run the model on torch."""
