"""From a file of preferences to a batch of token ids."""
