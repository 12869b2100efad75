"""Studies and benchmarks of the project itself."""
