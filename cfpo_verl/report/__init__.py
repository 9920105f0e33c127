"""Read runs and evaluations, draw them, and write a page, pictures and a table."""
