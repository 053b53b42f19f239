"""Starting verbs on a cluster: torchx runs the components of `launch/components.py`."""
