"""Captions for training: prompts of templates and pools, required words, text files beside images, data sets."""
