"""Every architecture with a sequence classification class, tried as reward model and as policy."""
