"""All trainings of a study, one after the other, in turn: rates first, then every seed of every arm. Torch is here.

What a training came to is kept in its own folder, so that a study that was stopped goes on after the last of them, and
within one after what its trainer saved. Arms take turns within a seed, so that a machine that slows down slows all.

Legend: M rows of the text that judges, T tokens a row, E experts.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from breakeven.engines.inside.child import Say
from breakeven.errors import BreakevenError, UserError
from breakeven.lab.torch_scorer import EXPERTS
from breakeven.lab.training.loop import Trainer, device, mean_nats, next_token_loss
from breakeven.lab.training.study import CHECKS, PLAN, ROWS, ArmJob, StudyJob
from breakeven.lab.training.study_result import PlannedSteps, RunDone, StudyDone
from breakeven.lab.training.work import Recipe, Trained, write_whole

_TIMED_STEPS = 3
_SLOWER = 1.08
"""A step in a training over one timed by itself: checkpoints, and a machine that does other things too."""
_TRIES = 4.5
"""Rates tried for a shape on average: three, and more where the best is at an end."""
_MOST_TRIES = 6
_SHORT = 4
"""A training in which a rate is tried has a fourth of the steps."""
_LEAST_SHORT, _LEAST_STEPS = 20, 40
_R = TypeVar("_R", bound=msgspec.Struct)


def run(spec: bytes, say: Say) -> StudyDone:
    """Do all that `spec` asks."""
    job = msgspec.json.decode(spec, type=StudyJob)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return _Study(job, say).run()


class _Study:
    """A study under way."""

    def __init__(self, job: StudyJob, say: Say) -> None:
        self._job, self._say = job, say
        self._folder = Path(job.folder)
        self._train_NT, self._choose_NT, self._judge_MT = (
            np.load(self._folder / ROWS / f"{name}.npy") for name in ("train", "choose", "judge")
        )
        told = np.load(self._folder / ROWS / "judge-blocks.npy")
        self._lengths_M, self._blocks_M = told[0], told[1]
        self._device = device()
        self._plan = self._planned()
        self._done = self._costs = 0.0

    def run(self) -> StudyDone:
        job, plan = self._job, self._plan
        reference = job.reference
        self._costs = self._whole_cost()
        tried: dict[int, dict[float, RunDone | None]] = {}
        for number, arm in enumerate(job.arms):
            tried[number] = {} if arm.copy_of is not None else self._tune(number)
        best = [
            self._best(tried[number if arm.copy_of is None else arm.copy_of]) for number, arm in enumerate(job.arms)
        ]
        runs, short = [], []
        for seed in job.seeds:
            for number in range(len(job.arms)):
                runs.append(self._must(number, seed, best[number], plan.steps[number]))
            if plan.short[reference] < plan.steps[reference]:
                short.append(self._must(reference, seed, best[reference], plan.short[reference]))
        return StudyDone(
            runs=runs,
            short=short,
            rates=best,
            tried=[
                {f"{rate:g}": None if done is None else done.chosen for rate, done in sorted(tried[number].items())}
                for number in range(len(job.arms))
            ],
            plan=plan,
            device=_name_of(self._device),
        )

    # --- rates ---------------------------------------------------------------------------------------------------

    def _tune(self, number: int) -> dict[float, RunDone | None]:
        """Short trainings at each rate, and beyond an end of them while that is the best. By the text that chooses."""
        rates = sorted(self._job.rates)
        if len(rates) == 1:
            return {rates[0]: None}
        steps, seed = self._plan.short[number], self._job.seeds[0]
        found: dict[float, RunDone | None] = {rate: self._run(number, seed, rate, steps) for rate in rates}
        while len(found) < _MOST_TRIES:
            order = sorted(found)
            best = self._best(found)
            # Of three significant digits, so that a folder's name and a result say the same rate.
            beyond = best / 2 if best == order[0] else best * 2 if best == order[-1] else None
            if beyond is None:
                break
            beyond = float(f"{beyond:.3g}")
            found[beyond] = self._run(number, seed, beyond, steps)
        return found

    def _best(self, found: dict[float, RunDone | None]) -> float:
        if len(found) == 1:
            return next(iter(found))
        rates = [rate for rate, done in found.items() if done is not None]
        if not rates:
            raise BreakevenError("the loss became no number at every rate tried; give lower `rates:` in the study")
        return min(rates, key=lambda rate: _chosen(found[rate]))

    # --- one training --------------------------------------------------------------------------------------------

    def _must(self, number: int, seed: int, rate: float, steps: int) -> RunDone:
        done = self._run(number, seed, rate, steps)
        if done is None:
            name = self._job.arms[number].name
            raise BreakevenError(
                f"{name}: the loss became no number at the rate {rate:g}, which a shorter training bore; give lower "
                "`rates:` in the study"
            )
        return done

    def _run(self, number: int, seed: int, rate: float, steps: int) -> RunDone | None:
        """One training, or what it came to before; None where its loss became no number."""
        arm = self._job.arms[number]
        folder = self._folder / "runs" / f"{arm.name}-seed{seed}-rate{rate:g}-steps{steps}"
        cost = self._cost(number, steps)
        kept = _kept(folder / "done.json", _Kept)
        if kept is None:
            kept = _Kept(done=self._trained(number, seed, rate, steps, folder, cost))
            write_whole(folder / "done.json", msgspec.json.encode(kept))
            for path in folder.glob("*.pt"):
                path.unlink()
        self._done += cost
        return kept.done

    def _trained(self, number: int, seed: int, rate: float, steps: int, folder: Path, cost: float) -> RunDone | None:
        job, arm = self._job, self._job.arms[number]
        model = self._new(arm, seed)

        def say(what: str, share: float) -> None:
            self._say(what, min(1.0, (self._done + share * cost) / self._costs))

        trainer = Trainer(
            model,
            Recipe(seed=seed, rate=rate, batch=job.batch, steps=steps, checks=CHECKS),
            self._train_NT,
            _loss_of(model, job.balance if arm.experts else 0.0),
            lambda: mean_nats(model, self._choose_NT, job.batch),
            folder,
            say,
            name=f"{arm.name}, seed {seed}, rate {rate:g}",
        )
        try:
            trained = trainer.run()
        except BreakevenError as error:
            if "no number" in str(error):
                return None
            raise
        nats_B, counts_LE = self._judged(model, arm)
        if not np.isfinite(nats_B).all():
            return None
        if seed == job.seeds[0] and steps == self._plan.steps[number]:
            self._save(model, arm, rate)
        return _done(arm, seed, rate, trained, nats_B, counts_LE)

    def _new(self, arm: ArmJob, seed: int) -> Any:
        """An untrained model. Its numbers are its own: two arms of one shape differ as two seeds do."""
        config = transformers.AutoConfig.from_pretrained(arm.folder, local_files_only=True)
        torch.manual_seed(int(np.random.SeedSequence([seed, arm.stream]).generate_state(1)[0]))
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        counted = sum(parameter.numel() for parameter in model.parameters())
        if counted != arm.total_params:
            raise BreakevenError(
                f"{arm.name}: transformers makes a model of {counted:,} weights where {arm.total_params:,} were "
                "counted, so nothing would be matched; report this"
            )
        if model._can_set_experts_implementation():
            model.set_experts_implementation(EXPERTS)
        return model.to(self._device)

    def _save(self, model: Any, arm: ArmJob, rate: float) -> None:
        """The model as a directory that is whole or not there. A short study tries each rate in as many steps."""
        place = self._folder / "models" / f"{arm.name}-rate{rate:g}"
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            model.to("cpu").save_pretrained(partial)
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(f"cannot write {place}: {error.strerror}; free some space and give it again") from error

    def _judged(self, model: Any, arm: ArmJob) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Nats of each block of the text that judges (B), and how often each expert of each layer was chosen (L, E)."""
        nats_B = np.zeros(int(self._blocks_M.max()) + 1)
        counts_LE = np.zeros((arm.routed_layers, arm.experts), np.int64)
        rows, size = self._judge_MT, self._job.batch
        model.eval()
        with torch.inference_mode():
            for begin in range(0, len(rows), size):
                ids_BT = torch.from_numpy(rows[begin : begin + size].astype(np.int64)).to(self._device)
                extra = {"output_router_logits": True} if arm.experts else {}
                found = model(input_ids=ids_BT, use_cache=False, **extra)
                nats = functional.cross_entropy(
                    found.logits[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none"
                ).reshape(len(ids_BT), -1)
                lengths = torch.from_numpy(self._lengths_M[begin : begin + size]).to(self._device)
                # What fills a row up stands behind its text, so nothing before it sees it.
                there = torch.arange(ids_BT.shape[1], device=self._device)[None] < lengths[:, None]
                sums = (nats * there[:, 1:]).sum(dim=1, dtype=torch.float64).cpu().numpy()
                np.add.at(nats_B, self._blocks_M[begin : begin + size], sums)
                for layer, logits in enumerate(found.router_logits if arm.experts else ()):
                    chosen = logits.reshape(*there.shape, -1).topk(arm.used, dim=-1).indices[there]
                    counts_LE[layer] += torch.bincount(chosen.flatten(), minlength=arm.experts).cpu().numpy()
        return nats_B, counts_LE

    # --- how many steps ------------------------------------------------------------------------------------------

    def _planned(self) -> PlannedSteps:
        """Steps of every arm: as asked, or as many as the time allows. Kept, so that what goes on goes on with them."""
        kept = _kept(self._folder / PLAN, PlannedSteps)
        if kept is not None:
            return kept
        job = self._job
        step_s: list[float] = []
        read_s: list[float] = []
        for arm in job.arms:
            if job.steps is not None and not job.by_time:
                timed = 1.0, 1.0  # nothing hangs on it but how progress is shown
            elif arm.copy_of is not None:
                timed = step_s[arm.copy_of], read_s[arm.copy_of]
            else:
                self._say(f"timing {arm.name}", 0.0)
                timed = self._timed(arm)
            step_s.append(timed[0])
            read_s.append(timed[1])
        scale = [step_s[job.reference] / each if job.by_time else 1.0 for each in step_s]

        def plan(steps: int) -> PlannedSteps:
            each = [max(1, round(steps * factor)) for factor in scale]
            short = [min(one, max(_LEAST_SHORT, one // _SHORT)) for one in each]
            return PlannedSteps(steps=each, short=short, step_s=step_s, read_s=read_s)

        if job.steps is not None:
            made = plan(job.steps)
        else:
            seconds = job.seconds
            assert seconds is not None
            most = _largest(lambda steps: self._seconds(plan(steps)) <= seconds)
            if most < _LEAST_STEPS:
                least = math.ceil(self._seconds(plan(_LEAST_STEPS)))
                raise UserError(
                    f"--for {seconds:g}s is {most} steps of each training here, and {_LEAST_STEPS} are the least "
                    f"that teach anything; give --for {least}s, smaller arms, shorter rows or fewer seeds"
                )
            made = plan(most)
        write_whole(self._folder / PLAN, msgspec.json.encode(made))
        return made

    def _timed(self, arm: ArmJob) -> tuple[float, float]:
        """Seconds of one step, and of reading all text that chooses and judges once."""
        model = self._new(arm, self._job.seeds[0])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        loss = _loss_of(model, self._job.balance if arm.experts else 0.0)
        ids_BT = torch.from_numpy(
            np.resize(self._train_NT, (self._job.batch, self._train_NT.shape[1])).astype(np.int64)
        )
        ids_BT = ids_BT.to(self._device)
        model.train()
        steps = []
        for _ in range(_TIMED_STEPS + 1):
            began = time.perf_counter()
            loss(ids_BT, np.arange(len(ids_BT))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps.append(time.perf_counter() - began)
        began = time.perf_counter()
        mean_nats(model, self._choose_NT, self._job.batch)
        return statistics.median(steps[1:]) * _SLOWER, time.perf_counter() - began

    def _seconds(self, plan: PlannedSteps) -> float:
        """What a study takes."""
        job = self._job
        tries = 0.0 if len(job.rates) == 1 else len(job.rates) - 3 + _TRIES
        whole = 0.0
        for number, arm in enumerate(job.arms):
            full, short = (self._cost(number, steps[number], plan) for steps in (plan.steps, plan.short))
            whole += len(job.seeds) * full + (0.0 if arm.copy_of is not None else tries * short)
            whole += len(job.seeds) * short if number == job.reference else 0.0
        return whole

    def _cost(self, number: int, steps: int, plan: PlannedSteps | None = None) -> float:
        """Seconds of one training of so many steps."""
        plan = self._plan if plan is None else plan
        judging = len(self._judge_MT) / max(1, len(self._choose_NT))
        return steps * plan.step_s[number] + (CHECKS + 1 + judging) * plan.read_s[number]

    def _whole_cost(self) -> float:
        return max(1e-9, self._seconds(self._plan))


class _Kept(msgspec.Struct, frozen=True):
    """What a training came to, as its folder keeps it; None: its loss became no number."""

    done: RunDone | None


def _kept(path: Path, kind: type[_R]) -> _R | None:
    """What a file that is written whole holds; None where there is none."""
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(f"{path}: damaged; remove it to do that part anew") from error


def _done(
    arm: ArmJob, seed: int, rate: float, trained: Trained, nats_B: NDArray[np.float64], counts_LE: NDArray[np.int64]
) -> RunDone:
    return RunDone(
        arm=arm.name,
        seed=seed,
        rate=rate,
        steps=trained.steps,
        tokens=trained.tokens,
        seconds=trained.seconds,
        losses=trained.losses,
        checks=trained.checks,
        best_step=trained.best_step,
        chosen=min(each[1] for each in trained.checks),
        nats=nats_B.tolist(),
        counts=counts_LE.tolist(),
    )


def _chosen(done: RunDone | None) -> float:
    return math.inf if done is None else done.chosen


def _loss_of(model: Any, balance: float) -> Callable[[torch.Tensor, NDArray[np.int64]], torch.Tensor]:
    """Next-token loss, and what spreads tokens over experts (Switch Transformer, arXiv 2101.03961), so weighed."""
    extra = {"output_router_logits": True} if balance else {}

    def loss(ids_BT: torch.Tensor, numbers: NDArray[np.int64]) -> torch.Tensor:
        found = model(input_ids=ids_BT, use_cache=False, **extra)
        value = next_token_loss(found.logits, ids_BT)
        return value + balance * found.aux_loss if balance else value

    return loss


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, 0 where 1 does not."""
    low, high = 0, 1
    while fits(high) and high < 1 << 30:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _name_of(where: torch.device) -> str:
    return torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
