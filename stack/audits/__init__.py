"""Audits: whether what a model learnt on is what it meets, said in findings that can stop a release."""
