"""One user representation from a company's log: ingest, train, evaluate, export, serve."""

__version__ = "0.1.0"
