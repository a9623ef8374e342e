"""The trial of a new bundle: it has to answer its golden prompt, fast enough and in little enough memory.

Each start is counted on the disk beforehand. A bundle that takes the whole board down with it, so that nobody is left
to note a result, has used up its starts after two, and the next one goes back to the bundle before it.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.trust import TrustStore
from device_runtime.errors import ConfigurationError, SignatureError, StonechatError, UpdateError
from device_runtime.records.printable import counted
from device_runtime.update.active import is_slot_folder, read_state, resolve
from device_runtime.update.probe import Measured
from device_runtime.update.slots import Slots, leftovers, lock
from device_runtime.update.staging import peek
from device_runtime.update.state import ATTEMPTS, Last, TrialLimits

__all__ = ["Check", "Probe", "judge", "ready_bundle", "roll_back", "try_bundle", "try_pending"]

Check = Callable[[Bundle], object]  # raises a StonechatError if the device cannot serve with a bundle
Probe = Callable[[Path, TrialLimits, int | None], Measured | str]  # runs a bundle: what was measured, or why it failed

_LOOK_S = 0.02  # between looks at a process on trial
log = logging.getLogger("stonechat.update")


def ready_bundle(
    path: Path,
    threads: int | None = None,
    trust: TrustStore | None = None,
    check: Check | None = None,
    probe: Probe | None = None,
) -> Path:
    """What a service calls before it opens its model: holds the trial that is due, and returns the bundle to open.

    Args:
        path: a slot folder, or a bundle, which stays as it is.
        trust: whose signature the bundle on trial must have; None asks for none.
        check: what the device asks of the bundle on trial, beyond that it runs.
        probe: what runs it, in place of `try_bundle`.

    Raises:
        ConfigurationError: a slot folder has no bundle that passed its trial.
        UpdateError: its state is damaged.
    """
    if not is_slot_folder(path):
        return path
    state = read_state(path)
    if state.trial is not None:
        try:
            with lock(path) as slots:
                if slots.state.trial is not None:
                    _log(try_pending(slots, threads, trust, check, probe))
        except (UpdateError, OSError) as error:
            if state.active is None:
                raise
            # Somebody else holds the trial, or the disk is full or read-only: what has run so far runs.
            log.warning("the trial that is due is not held: %s", error)
    elif leftovers(path, state):
        with suppress(UpdateError, OSError), lock(path):  # which clears away; that can wait for another start
            pass
    return resolve(path)


def try_pending(
    slots: Slots,
    threads: int | None = None,
    trust: TrustStore | None = None,
    check: Check | None = None,
    probe: Probe | None = None,
) -> Last:
    """Hold the trial that is due; what came of it is on the disk when this returns. See `ready_bundle`."""
    trial, last = slots.state.trial, slots.state.last
    assert trial is not None and last is not None
    if trial.attempts_left == 0:
        reason = f"none of its {ATTEMPTS} trials came to an end: the device lost power or hung, or the trial was killed"
        return _give_back(slots, last, reason)
    try:
        bundle = Bundle.open(slots.path(trial.slot), trust=trust)
    except StonechatError as error:
        return _give_back(slots, last, str(error))
    slots.attempt()
    found = (probe or try_bundle)(bundle.path, trial.limits, threads)
    if isinstance(found, str):
        return _give_back(slots, last, found)
    if (fault := judge(found, trial.limits, bundle)) is not None:
        return _give_back(slots, last, fault)
    if check is not None:
        try:  # by now every byte has been hashed, and a crash of ours counts as a start of the trial
            check(bundle)
        except StonechatError as error:
            return _give_back(slots, last, str(error))
    figures = {"tokens_per_s": round(found.tokens_per_s, 2), "peak_rss_mb": round(found.peak_rss_mb, 1)}
    slots.confirm(bundle.manifest.security_counter, Last("confirmed", last.name, last.version, None, **figures))
    assert slots.state.last is not None
    return slots.state.last


def roll_back(slots: Slots, trust: TrustStore | None = None) -> None:
    """Go back by hand: call off the trial that is due, or else return to the bundle before the active one.

    Raises:
        ConfigurationError: there is nothing to go back to.
        SignatureError: the earlier bundle has a smaller security_counter than one that was confirmed, or nobody who
            is trusted has signed it: its key may have been retired.
        BundleError: it is damaged, or of before an upgrade of stonechat that no longer runs its graph.
    """
    state = slots.state
    if state.trial is not None and state.last is not None:
        _give_back(slots, state.last, "called off by hand")
        return
    if state.previous is None or state.active is None:
        raise ConfigurationError(f"{slots.folder} has no earlier bundle to go back to; install one.")
    earlier = Bundle.open(slots.path(state.previous), verify=True, trust=trust).manifest
    earlier.require_present_graph()
    if earlier.security_counter < state.security_counter:
        raise SignatureError(
            f"the earlier bundle, version {earlier.version}, has security_counter {earlier.security_counter}; one with "
            f"{state.security_counter} was confirmed, and there is no way back before that. Install a newer bundle."
        )
    left = peek(slots.path(state.active))  # perhaps damaged, and that is why
    version = left.version if left else "?"
    slots.swap(Last("rolled_back", earlier.name, version, f"by hand, to version {earlier.version}"))


def try_bundle(bundle: Path, limits: TrialLimits, threads: int | None = None) -> Measured | str:
    """Run a bundle in a process of its own; returns what was measured, or why there is nothing to measure."""
    command = [sys.executable, "-m", "device_runtime.update.probe", str(bundle), str(threads or 0)]
    deadline_s = time.monotonic() + limits.timeout_s
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            while child.poll() is None:
                peak_mb = _peak_rss_mb(child.pid)
                if limits.max_rss_mb is not None and peak_mb > limits.max_rss_mb:
                    return _too_large(peak_mb, limits.max_rss_mb)  # before it takes what other services need
                if time.monotonic() > deadline_s:
                    return f"it had not answered after {limits.timeout_s:g} s"
                time.sleep(_LOOK_S)
        finally:
            child.kill()
        assert child.stdout is not None
        report = child.stdout.read()
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process crashed ({name}{hint})"
    try:
        result = json.loads(report)
        return str(result["error"]) if "error" in result else Measured(**result)
    except (ValueError, TypeError):
        return f"its process ended with exit code {child.returncode} and without an answer"


def judge(found: Measured, limits: TrialLimits, bundle: Bundle) -> str | None:
    """Why a bundle does not pass, or None."""
    golden = bundle.manifest.trial
    if golden is not None and not found.as_expected:
        return f"it answered {golden.prompt!r} with {found.text!r}; expected an answer with {golden.expect!r}"
    wanted = bundle.manifest.trial_score
    if wanted is not None and (found.score is None or found.score < wanted.at_least):
        share = "none" if found.score is None else f"{found.score:.1%}"
        asked = counted(len(wanted.examples), "example")
        return f"it got {share} of its {asked} right; the floor is {wanted.at_least:.1%}"
    if limits.min_tps is not None and found.tokens_per_s < limits.min_tps:
        return f"it decoded {found.tokens_per_s:.1f} tok/s; the floor is {limits.min_tps:g} tok/s"
    if limits.max_rss_mb is not None and found.peak_rss_mb > limits.max_rss_mb:
        return _too_large(found.peak_rss_mb, limits.max_rss_mb)
    return None


def _give_back(slots: Slots, last: Last, reason: str) -> Last:
    slots.give_back(Last("rolled_back", last.name, last.version, reason.rstrip(".")))
    assert slots.state.last is not None
    return slots.state.last


def _too_large(found_mb: float, limit_mb: float) -> str:
    return f"it took {found_mb:.0f} MB of memory; the ceiling is {limit_mb:g} MB"


def _peak_rss_mb(pid: int) -> float:
    """The largest resident memory of a process so far (proc(5), VmHWM), in MB; 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _log(last: Last) -> None:
    if last.outcome == "confirmed":
        log.info("version %s of %s passed its trial: %s tok/s", last.version, last.name, last.tokens_per_s)
    else:
        log.warning("version %s of %s did not pass its trial: %s", last.version, last.name, last.reason)
