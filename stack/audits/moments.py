"""Mean and variance of weighted traffic, channel by channel, with the errors that they have.

Values are taken relative to a mean and a deviation that are known before (those that a layer has learnt), so that plain
sums in float64 lose nothing, and what several processes have seen is added. The rows of one request (the candidates of
a moment) are no independent draws: errors are those of whole requests, by linearisation ("the delta method"; Kish,
"Survey Sampling", 1965, for the effective number).

With y a value, w its row's weight, and W, S, Q the sums over one request of w, w y and w y^2::

    shift      m = sum S / sum W                     its error: sqrt(sum (S - m W)^2) / sum W
    ratio      v = sum Q / sum W - m^2               its error: sqrt(sum (Q - q W - 2 m (S - m W))^2) / sum W
    requests   (sum W)^2 / sum W^2                   with q = sum Q / sum W

Legend: N rows, R requests, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FAR = 5.0
"""Deviations from the known mean beyond which a value counts as far."""


@dataclass(kw_only=True)
class ChannelSums:
    """Sums over requests, each (D,). What is not finite is counted, and left out of the others; sums of parts of the
    traffic are added with `+`."""

    num_channels: int
    w: Floats = field(init=False)
    s: Floats = field(init=False)
    q: Floats = field(init=False)
    ww: Floats = field(init=False)
    ws: Floats = field(init=False)
    wq: Floats = field(init=False)
    ss: Floats = field(init=False)
    sq: Floats = field(init=False)
    qq: Floats = field(init=False)
    far: Floats = field(init=False)
    not_finite: Floats = field(init=False)

    def __post_init__(self) -> None:
        for name in _SUMS:
            setattr(self, name, np.zeros(self.num_channels))

    def add(self, value_ND: NDArray[np.floating], weight_N: Floats, request_N: NDArray[np.int64]) -> None:
        """Takes in the rows of whole requests: all rows of a request come in one call.

        `value_ND` relative to what is known. Raises: `ValueError` for a weight that is negative or not finite.
        """
        if not (np.isfinite(weight_N).all() and (weight_N >= 0).all()):
            raise ValueError("weights of rows must be finite and 0 or more")
        if not len(value_ND):
            return
        value_ND = np.asarray(value_ND, dtype=np.float64)
        finite_ND = np.isfinite(value_ND)
        value_ND = np.where(finite_ND, value_ND, 0.0)
        weight_ND = weight_N[:, None] * finite_ND
        w_RD, s_RD, q_RD = (
            _by_request(part_ND, request_N) for part_ND in (weight_ND, weight_ND * value_ND, weight_ND * value_ND**2)
        )
        self.w += w_RD.sum(0)
        self.s += s_RD.sum(0)
        self.q += q_RD.sum(0)
        self.ww += (w_RD * w_RD).sum(0)
        self.ws += (w_RD * s_RD).sum(0)
        self.wq += (w_RD * q_RD).sum(0)
        self.ss += (s_RD * s_RD).sum(0)
        self.sq += (s_RD * q_RD).sum(0)
        self.qq += (q_RD * q_RD).sum(0)
        self.far += (weight_ND * (np.abs(value_ND) > FAR)).sum(0)
        self.not_finite += (~finite_ND).sum(0)

    def __add__(self, other: ChannelSums) -> ChannelSums:
        assert self.num_channels == other.num_channels
        return ChannelSums.from_array(self.to_array() + other.to_array())

    def to_array(self) -> Floats:
        """(K, D): all sums, to be added over processes."""
        return np.stack([getattr(self, name) for name in _SUMS])

    @staticmethod
    def from_array(sums_KD: Floats) -> ChannelSums:
        """The inverse of `to_array`."""
        found = ChannelSums(num_channels=sums_KD.shape[1])
        for name, sum_D in zip(_SUMS, sums_KD, strict=True):
            setattr(found, name, np.array(sum_D))
        return found

    def moments(self) -> Moments:
        """What the sums say; NaN where no finite value has any weight."""
        with np.errstate(invalid="ignore", divide="ignore"):
            m_D, q_D = self.s / self.w, self.q / self.w
            shift_error_D = np.sqrt(np.maximum(self._products(-m_D, np.ones_like(m_D), np.zeros_like(m_D)), 0)) / self.w
            # q - q_D w - 2 m (s - m w)
            a_D, b_D, c_D = 2 * m_D**2 - q_D, -2 * m_D, np.ones_like(m_D)
            ratio_error_D = np.sqrt(np.maximum(self._products(a_D, b_D, c_D), 0)) / self.w
            return Moments(
                shift_D=m_D, shift_error_D=shift_error_D, ratio_D=np.maximum(q_D - m_D**2, 0.0),
                ratio_error_D=ratio_error_D, far_D=self.far / self.w, num_effective_D=self.w**2 / self.ww,
                not_finite_D=self.not_finite.astype(np.int64),
            )  # fmt: skip

    def _products(self, a_D: Floats, b_D: Floats, c_D: Floats) -> Floats:
        """The sum over requests of (a W + b S + c Q)^2."""
        return np.asarray(
            a_D**2 * self.ww + b_D**2 * self.ss + c_D**2 * self.qq
            + 2 * (a_D * b_D * self.ws + a_D * c_D * self.wq + b_D * c_D * self.sq)
        )  # fmt: skip


_SUMS = tuple(one.name for one in fields(ChannelSums) if one.name != "num_channels")


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of each channel, in known deviations: the mean's distance from the known mean, the variance over the known one,
    the standard errors of both, the share beyond `FAR`, the number of independent requests that weigh as much, and how
    many values were not finite."""

    shift_D: Floats
    shift_error_D: Floats
    ratio_D: Floats
    ratio_error_D: Floats
    far_D: Floats
    num_effective_D: Floats
    not_finite_D: NDArray[np.int64]

    @property
    def kl(self) -> Floats:
        """Kullback-Leibler divergence, in nats, of the known normal distribution from that of the traffic:
        (v - 1 - ln v + m^2) / 2."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((self.ratio_D - 1 - np.log(self.ratio_D) + self.shift_D**2) / 2)

    @property
    def w2(self) -> Floats:
        """2-Wasserstein distance of the two normal distributions: sqrt(m^2 + (sqrt v - 1)^2)."""
        return np.asarray(np.hypot(self.shift_D, np.sqrt(self.ratio_D) - 1))


def _by_request(value_ND: Floats, request_N: NDArray[np.int64]) -> Floats:
    """(R, D): sums over the rows of each request."""
    order_N = np.argsort(request_N, kind="stable")
    ordered_N = request_N[order_N]
    start_R = np.flatnonzero(np.concatenate([[True], ordered_N[1:] != ordered_N[:-1]]))
    return np.asarray(np.add.reduceat(value_ND[order_N], start_R, axis=0))
