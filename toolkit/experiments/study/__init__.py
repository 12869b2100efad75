"""The study of preference models, cell by cell."""
