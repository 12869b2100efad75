"""The reward model that scores at several scales."""
