"""Find a checkpoint, check it, and resolve what will run."""
