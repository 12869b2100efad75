"""Speed and memory beside TRL."""
