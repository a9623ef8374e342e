"""The state of a slot folder: which bundle runs, which one has to prove itself, which one can be gone back to.

Kept as slots.json and replaced whole. Everything here is pure: `slots.py` puts it on the disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Annotated, Literal, get_args

from device_runtime.errors import UpdateError
from device_runtime.records import typed_json

__all__ = ["ATTEMPTS", "SCHEMA", "SLOTS", "Last", "Phase", "Slot", "State", "Trial", "TrialLimits"]

SCHEMA = 1  # of slots.json
ATTEMPTS = 2  # starts of a trial; one that ends without a result was cut off by a loss of power, or hung the board

Slot = Literal["a", "b", "c"]  # one for the active bundle, one for the one before it, one for a new one
SLOTS: tuple[Slot, ...] = get_args(Slot)


class Phase(Enum):
    """What a slot folder is doing."""

    EMPTY = "empty"  # no bundle has been confirmed
    CONFIRMED = "confirmed"  # the active bundle has passed its trial
    PENDING = "pending"  # a new bundle waits for its trial; the active one, if any, still serves
    TRYING = "trying"  # its trial has begun at least once and has not ended

    def may_become(self, other: Phase) -> bool:
        """Whether the folder may go from here to there."""
        return other in _TRANSITIONS[self]


_TRANSITIONS = {
    Phase.EMPTY: {Phase.PENDING},
    Phase.CONFIRMED: {Phase.PENDING, Phase.CONFIRMED},  # an install; going back by hand
    Phase.PENDING: {Phase.TRYING, Phase.CONFIRMED, Phase.EMPTY},  # the trial begins, or is called off
    Phase.TRYING: {Phase.TRYING, Phase.CONFIRMED, Phase.EMPTY},  # once more after a cut; passed, or returned
}


@dataclass(frozen=True)
class TrialLimits:
    """What a new bundle has to keep to in its trial."""

    min_tps: Annotated[float | None, "tokens a second of decoding, at least"] = None
    max_rss_mb: Annotated[float | None, "resident memory of the process, in 10^6 bytes, at most"] = None
    timeout_s: Annotated[float, "loading and answering, at most"] = 300.0


@dataclass(frozen=True)
class Trial:
    """A bundle that has to prove itself."""

    slot: Annotated[Slot, "where it is"]
    attempts_left: Annotated[int, "starts; counted down on the disk before each"]
    limits: TrialLimits


@dataclass(frozen=True)
class Last:
    """How the last update stands, or ended."""

    outcome: Annotated[Literal["installed", "confirmed", "rolled_back"], "`installed` waits for its trial"]
    name: Annotated[str, "of the bundle"]
    version: Annotated[str, "of the bundle"]
    reason: Annotated[str | None, "why it was rolled back"] = None
    tokens_per_s: Annotated[float | None, "measured in the trial"] = None
    peak_rss_mb: Annotated[float | None, "measured in the trial"] = None


@dataclass(frozen=True)
class State:
    """slots.json. Each method returns the state after a step; no other step is possible."""

    schema: Annotated[int, "of this file"] = SCHEMA
    active: Annotated[Slot | None, "the slot that has passed its trial, and serves"] = None
    previous: Annotated[Slot | None, "the one before it, whole, for `slots rollback`"] = None
    trial: Annotated[Trial | None, "a new bundle that has to prove itself"] = None
    security_counter: Annotated[int, "the highest of a confirmed bundle"] = 0
    last: Annotated[Last | None, "how the last update stands, or ended"] = None

    @property
    def phase(self) -> Phase:
        """Where in its life the folder is."""
        if self.trial is not None:
            return Phase.PENDING if self.trial.attempts_left == ATTEMPTS else Phase.TRYING
        return Phase.EMPTY if self.active is None else Phase.CONFIRMED

    @property
    def free(self) -> Slot:
        """A slot that no bundle is in."""
        taken = (self.active, self.previous, self.trial and self.trial.slot)
        return next(slot for slot in SLOTS if slot not in taken)

    def without_previous(self) -> State:
        """There is no going back any more: its place on the disk is needed."""
        return replace(self, previous=None)

    def installed(self, limits: TrialLimits, last: Last) -> State:
        """The free slot holds a new bundle, whole. The one before the active one stays until the new one has passed."""
        return self._to(Phase.PENDING, trial=Trial(self.free, ATTEMPTS, limits), last=last)

    def attempt(self) -> State:
        """A trial is about to start."""
        assert self.trial is not None and self.trial.attempts_left > 0
        return self._to(Phase.TRYING, trial=replace(self.trial, attempts_left=self.trial.attempts_left - 1))

    def confirmed(self, security_counter: int, last: Last) -> State:
        """The trial was passed: the new bundle serves, and the one before it stays for going back by hand."""
        assert self.trial is not None
        return self._to(
            Phase.CONFIRMED,
            active=self.trial.slot,
            previous=self.active,
            trial=None,
            security_counter=max(self.security_counter, security_counter),
            last=last,
        )

    def returned(self, last: Last) -> State:
        """The trial was not passed, or was called off: what served before goes on serving."""
        assert self.trial is not None
        return self._to(Phase.EMPTY if self.active is None else Phase.CONFIRMED, trial=None, last=last)

    def swapped(self, last: Last) -> State:
        """Back to the bundle before the active one, by hand."""
        assert self.previous is not None
        return self._to(Phase.CONFIRMED, active=self.previous, previous=self.active, last=last)

    def _to(self, phase: Phase, **changes: object) -> State:
        after = replace(self, **changes)  # type: ignore[arg-type]
        assert self.phase.may_become(phase) and after.phase is phase, f"{self.phase} -> {after.phase}"
        return after

    def to_json(self) -> bytes:
        """As it is in slots.json."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> State:
        """Parse.

        Raises:
            UpdateError: it is not a state, or one that contradicts itself.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UpdateError(f"it is not JSON ({error})") from None
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise UpdateError(f"it has schema {typed_json.shortened(found)}; this stonechat reads schema {SCHEMA}")
        try:
            typed_json.check_texts(data)
            state: State = typed_json.read(cls, data)
        except ValueError as error:
            raise UpdateError(str(error)) from None
        on_trial = state.trial and state.trial.slot
        if state.active is not None and state.active in (state.previous, on_trial):
            raise UpdateError(f"slot {state.active} is active and has another part to play")
        if state.previous is not None and (state.active is None or state.previous == on_trial):
            raise UpdateError(f"slot {state.previous} cannot hold the bundle to go back to")
        if state.trial is not None and state.trial.attempts_left > ATTEMPTS:
            raise UpdateError("its trial cannot be")
        return state
