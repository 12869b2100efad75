"""The command `prefscale`."""
