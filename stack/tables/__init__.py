"""Embedding tables: one for each vocabulary, sharded by TorchRec, updated inside the backward pass."""
