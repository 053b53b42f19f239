"""The errors that are a user's to mend, as one tree. Anything outside it is our own mistake and shows its traceback.

    UserError                   one clear line on stderr, exit status 2
      ConfigError               an option, a choice or a value of the configuration
        UnknownNameError        a name that a registry does not have; tells those it has
      DataError                 the log or the prepared data
        NotFiniteError          numbers that nothing can be learnt from
      CheckpointError           a checkpoint or a run folder
      PackageError              an exported package
      AuditError                an audit that found what must not be released
      MachineError              the machine: memory, disk, devices, missing programs

A message names the thing, its value, the limit and the way out, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something that the person at the keyboard can mend."""


class ConfigError(UserError):
    """A configuration that cannot be used."""


class UnknownNameError(ConfigError):
    """A name that is not in a registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"unknown {kind} {name!r}; known: {names}")


class DataError(UserError):
    """A log or prepared data that cannot be used."""


class NotFiniteError(DataError):
    """Learning met numbers that are NaN or infinite."""


class CheckpointError(UserError):
    """A checkpoint or run folder that cannot be used."""


class AuditError(UserError):
    """An audit whose findings stop a release."""


class PackageError(UserError):
    """An exported package that cannot be used."""


class MachineError(UserError):
    """A machine that lacks something that was asked of it."""
