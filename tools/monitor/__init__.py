"""Prometheus, Alertmanager and node_exporter as programs of one's own, for `make monitor-demo` and the tests."""
