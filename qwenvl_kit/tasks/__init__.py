"""One module per verb that is more than a prompt: what it asks of the executors, and what it returns."""
