"""What threads do to be less in the way of others."""

from __future__ import annotations

import os
import sys
import threading


def step_back(niceness: int) -> None:
    """Gives this thread a lower priority, for good, where a thread has one of its own: on Linux."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
