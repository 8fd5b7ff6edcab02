"""Train and evaluate the embedded model; no other package imports it."""
