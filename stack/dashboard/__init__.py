"""A page over Prometheus that needs nothing else: the panels, the server of the page, the page."""
