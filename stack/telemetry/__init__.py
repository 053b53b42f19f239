"""What the program says while it works: lines, progress, figures."""
