"""Models on one thread, and a random checkpoint in the published layout."""

from helpers.model_fixtures import one_thread, published

__all__ = ["one_thread", "published"]
