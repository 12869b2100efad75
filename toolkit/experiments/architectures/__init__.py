"""Every architecture that Transformers has a sequence classification class for, tried as reward model and as policy."""
