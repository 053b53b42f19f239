"""Training: assembly, the loop, and what happens beside it every so many steps."""
