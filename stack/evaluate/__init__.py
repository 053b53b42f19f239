"""Quality on days the model has never seen, beside honest baselines on the very same examples."""
