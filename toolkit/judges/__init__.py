"""What says which of two responses is better, and the closed loop."""
