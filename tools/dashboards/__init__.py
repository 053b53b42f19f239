"""Grafana's files out of the panels, and what the tests and pictures of the dashboard stand on."""
