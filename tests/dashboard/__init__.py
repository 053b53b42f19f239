"""The dashboard: panels, Grafana's files, the server of the page, the page in a browser."""
