"""Models side by side on held-out pairs: their figures, and what follows from them."""
