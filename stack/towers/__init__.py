"""What is computed once for a request (the user) and once for a candidate (the item)."""
