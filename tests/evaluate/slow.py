"""The metrics once more, slowly and obviously: double loops over pairs and users."""

from __future__ import annotations

import math
from collections.abc import Sequence


def auc(scores: Sequence[float], labels: Sequence[float], weights: Sequence[float]) -> float:
    wins = pairs = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if labels[i] > 0 and labels[j] <= 0:
                pair = weights[i] * weights[j]
                pairs += pair
                if scores[i] > scores[j]:
                    wins += pair
                elif scores[i] == scores[j]:
                    wins += pair / 2
    return wins / pairs if pairs else math.nan


def gauc(
    users: Sequence[int], scores: Sequence[float], labels: Sequence[float], weights: Sequence[float]
) -> tuple[float, int]:
    total = impressions = 0.0
    counted = 0
    for user in sorted(set(users)):
        mine = [i for i in range(len(users)) if users[i] == user]
        value = auc([scores[i] for i in mine], [labels[i] for i in mine], [weights[i] for i in mine])
        if not math.isnan(value):
            weight = sum(weights[i] for i in mine)
            total += weight * value
            impressions += weight
            counted += 1
    return (total / impressions if counted else math.nan), counted


def log_loss(logits: Sequence[float], labels: Sequence[float], weights: Sequence[float]) -> float:
    total = 0.0
    for logit, label, weight in zip(logits, labels, weights, strict=True):
        chance = 1 / (1 + math.exp(-logit))
        total -= weight * math.log(chance if label > 0 else 1 - chance)
    return total / sum(weights)


def accuracy(scores: Sequence[Sequence[float]], labels: Sequence[int], weights: Sequence[float], k: int) -> float:
    right = 0.0
    for row, label, weight in zip(scores, labels, weights, strict=True):
        best = sorted(range(len(row)), key=lambda index: (-row[index], index))[:k]
        right += weight * (label in best)
    return right / sum(weights)
