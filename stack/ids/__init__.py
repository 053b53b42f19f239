"""Ids to rows, before tables look rows up: direct, hashed into fewer rows, or managed within a bounded number."""
