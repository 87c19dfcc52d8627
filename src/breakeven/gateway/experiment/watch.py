"""Experiments as the watching process runs them: new lines of the decision log in, shares and verdicts out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.experiment.assign import first_share
from breakeven.gateway.experiment.compare import (
    Canary,
    arms,
    canary_look,
    canary_progress,
    canary_share,
    canary_tally,
    differences,
    progress,
    stop,
)
from breakeven.gateway.experiment.tally import ArmTally
from breakeven.gateway.plan.model import ExperimentPlan, GatewayPlan
from breakeven.gateway.seen.read_log import Follower
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.gateway.seen.snapshot import ExperimentState
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Treatment
from breakeven.hardware.system import regular

STATE_FILE = "experiments.json"
STATE_SCHEMA = "breakeven.experiment_state/1"
SAVE_S = 5.0
HOLDING = b'"experiment":"'


class Saved(msgspec.Struct, kw_only=True):
    """One experiment's past. `settings` identifies its plan: another one begins anew, after `since_s`."""

    settings: str
    since_s: float = 0.0
    tally: ArmTally = msgspec.field(default_factory=ArmTally)
    canary: Canary = Canary()
    state: str = "running"
    winner: str | None = None
    reason: str = ""


class StateFile(msgspec.Struct, kw_only=True):
    """What a restart goes on from. `offsets`: bytes of each log file that are in the tallies."""

    schema: str = STATE_SCHEMA
    time_s: float = 0.0
    offsets: dict[str, int] = {}
    experiments: dict[str, Saved] = {}
    states: list[ExperimentState] = []


def read_state(directory: Path) -> StateFile | None:
    """The saved state; None where there is none. Raises UserError for a file that is something else."""
    path = directory / STATE_FILE
    try:
        with open(path, "rb", opener=regular) as file:
            found = msgspec.json.decode(file.read(), type=StateFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: {error}; move it away and experiments are computed again from the decision log"
        ) from None
    if found.schema != STATE_SCHEMA:
        raise UserError(f"{path}: schema is {found.schema}, this version reads {STATE_SCHEMA}; move it away")
    return found


class Experiments:
    """All experiments of a plan. `step` now and then; `save` at the end.

    `slots`: rows of `SharedBlock.share` by experiment name; None: by their order in the plan. `block` None: nothing is
    told to workers. With `keep` the state is saved beside the log every few seconds and when something changes; a
    restart continues from it, and from the first line that is not in it.
    """

    def __init__(
        self,
        plan: GatewayPlan,
        block: SharedBlock | None,
        log_directory: Path | None,
        slots: Mapping[str, int] | None = None,
        *,
        keep: bool = True,
    ) -> None:
        """Tells workers the first shares. Raises UserError for a state file that cannot be read."""
        self._plans = {experiment.name: experiment for experiment in plan.experiments}
        self._block, self._directory, self._keep = block, log_directory, keep
        self._slots = slots or {name: i for i, name in enumerate(self._plans)}
        saved = (None if log_directory is None else read_state(log_directory)) or StateFile()
        self._saved = {
            name: _resume(experiment, saved.experiments.get(name), time.time())
            for name, experiment in self._plans.items()
        }
        self._follower = None if log_directory is None else Follower(log_directory, saved.offsets, HOLDING)
        self._next_save_s = 0.0
        self._changed = False
        self.states: list[ExperimentState] = []
        self._tell()

    def step(self, now_s: float) -> list[ExperimentState]:
        """Read what is new, judge, tell workers. `now_s`: any clock that only goes forward."""
        if not self._plans:
            return []
        read = [] if self._follower is None else self._follower.new()
        for record in read:
            self._add(record)
        turned = [self._judge(experiment) for experiment in self._plans.values()]
        if not self.states or read or any(turned):
            self.states = [self._state(experiment) for experiment in self._plans.values()]
        self._tell()
        self._changed = self._changed or bool(read)
        if any(turned) or (self._changed and now_s >= self._next_save_s):
            self.save()
            self._next_save_s = now_s + SAVE_S
        return self.states

    @property
    def behind(self) -> bool:
        """The last step stopped at its limit: more of the log is there."""
        return self._follower is not None and self._follower.behind

    def save(self) -> None:
        """Write the state beside the log, whole or not at all. A disk that is full costs only the next restart."""
        if not self._keep or self._follower is None or self._directory is None:
            return
        content = StateFile(
            time_s=time.time(), offsets=self._follower.offsets, experiments=self._saved, states=self.states
        )
        path, beside = self._directory / STATE_FILE, self._directory / f".{STATE_FILE}.{os.getpid()}"
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # It tells as much of the traffic as the log does, so it is for its owner alone as well.
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(content))
            beside.replace(path)
            self._changed = False

    def _add(self, record: DecisionRecord) -> None:
        saved = self._saved.get(record.experiment)
        # What ends after a verdict is shown no more: it would move the numbers that the verdict was given on.
        if saved is not None and saved.state == "running" and record.time_s >= saved.since_s:
            saved.tally.add(self._plans[record.experiment], record)

    def _judge(self, experiment: ExperimentPlan) -> bool:
        """Whether something changed."""
        saved = self._saved[experiment.name]
        if saved.state != "running":
            return False
        if experiment.kind == "canary":
            after = canary_look(experiment, saved.canary, saved.tally)
            if after == saved.canary:
                return False
            if after.step != saved.canary.step:
                saved.tally = canary_tally(experiment, after, saved.tally)
                # Requests that began at the old share belong to the old step.
                saved.since_s = time.time()
            saved.canary, saved.state, saved.reason = after, after.state, after.reason
            if after.state != "running":
                saved.winner = experiment.treatment if after.state == "done" else experiment.control
            return True
        if (over := stop(experiment, saved.tally)) is None:
            return False
        saved.state, saved.winner, saved.reason = over.state, over.winner, over.reason
        return True

    def _share(self, experiment: ExperimentPlan) -> float:
        saved = self._saved[experiment.name]
        if experiment.kind == "canary":
            return canary_share(experiment, saved.canary)
        return first_share(experiment) if saved.state == "running" else 0.0

    def _tell(self) -> None:
        if self._block is None:
            return
        for name, experiment in self._plans.items():
            row = self._slots[name]
            self._block.share.put(0, row, Treatment.SHARE, self._share(experiment))
            self._block.share.put(0, row, Treatment.STOPPED, float(self._saved[name].state != "running"))

    def _state(self, experiment: ExperimentPlan) -> ExperimentState:
        saved = self._saved[experiment.name]
        reason = saved.reason
        if self._follower is None:
            reason = "nothing is known: the decision log is off; set log.directory"
        elif saved.state == "running":
            canary = experiment.kind == "canary"
            now = (
                canary_progress(experiment, saved.canary, saved.tally) if canary else progress(experiment, saved.tally)
            )
            reason = "; ".join(filter(None, (saved.reason, now)))
        return ExperimentState(
            name=experiment.name,
            kind=experiment.kind,
            model=experiment.model,
            state=saved.state,
            share=self._share(experiment),
            winner=saved.winner,
            reason=reason,
            arms=arms(experiment, saved.tally),
            differences=differences(experiment, saved.tally),
        )


def _resume(experiment: ExperimentPlan, saved: Saved | None, now_s: float) -> Saved:
    """The saved past if it is of this very plan, else a fresh one that ignores records of the old."""
    settings = msgspec.json.encode(experiment).decode()
    if saved is None:
        return Saved(settings=settings)
    return saved if saved.settings == settings else Saved(settings=settings, since_s=now_s)


def status(directory: Path, plan: GatewayPlan | None) -> list[ExperimentState]:
    """Experiments as of now from the log (with a plan), else as the gateway saved them last. Writes nothing.

    Raises UserError where there is nothing to tell.
    """
    if plan is None:
        saved = read_state(directory)
        if saved is None:
            raise UserError(
                f"{directory} holds no {STATE_FILE}: no gateway with experiments has logged here; "
                "give its file (--gateway FILE) to compute them from the log"
            )
        return saved.states
    if not plan.experiments:
        raise UserError(f"{plan.path}: no experiments are described; docs/experiment.md shows how")
    experiments = Experiments(plan, None, directory, keep=False)
    experiments.step(0.0)
    while experiments.behind:
        experiments.step(0.0)
    return experiments.states
