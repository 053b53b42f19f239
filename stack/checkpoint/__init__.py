"""Checkpoints: rows of tables, dense tensors and the loop's state, in folders that exist only when complete."""
