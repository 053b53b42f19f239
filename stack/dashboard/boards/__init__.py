"""The five boards, in the order of their tabs."""

from __future__ import annotations

from stack.dashboard.boards.audits import AUDITS
from stack.dashboard.boards.daily import DAILY
from stack.dashboard.boards.serving import SERVING
from stack.dashboard.boards.tables import TABLES
from stack.dashboard.boards.training import TRAINING
from stack.dashboard.panels import Board

BOARDS: tuple[Board, ...] = (TRAINING, TABLES, DAILY, AUDITS, SERVING)
