"""Read run folders, draw them, put them in a table."""
