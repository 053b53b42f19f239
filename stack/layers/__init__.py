"""Dense building blocks: plain tensors in, plain tensors out; none has heard of tables, sharding or configuration."""
