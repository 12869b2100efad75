"""Whole jobs, from a command line to what is saved: what `prefscale` and the recipes run."""
