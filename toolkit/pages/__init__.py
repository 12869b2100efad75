"""Tables, pictures and pages that people look at."""
