"""The command line's root: finds the verb, loads only that verb's module, and turns errors into one line each.

It parses nothing but its own two options, so that `breakeven --help` costs no more than starting Python.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from breakeven.errors import BreakevenError, UserError, complain, printable
from breakeven.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130
NOT_TEXT = "{}: a name that is not UTF-8, which no result can repeat; rename it (`mv`), or link to it by another name"
COMPLETION_OPTIONS = ("install_completion", "show_completion")
LAB = frozenset({"evaluate", "quantize", "experts", "export", "distill", "train", "tune", "synth"})
"""Verbs that write models, or read them for hours."""


class Verb(NamedTuple):
    """A verb's module (which exports `app: typer.Typer`) and its line in the help."""

    module: str
    help: str


VERBS: dict[str, Verb] = {
    "compare": Verb("breakeven.cli.compare", "Measure two or more models side by side and say which wins here."),
    "bench": Verb("breakeven.cli.bench", "Measure one endpoint under load: arrivals, traces, goodput."),
    "capacity": Verb(
        "breakeven.cli.capacity", "Find how many requests a second, and how many people at once, it carries."
    ),
    "predict": Verb("breakeven.cli.predict", "Predict speed and memory on this machine or another, without a run."),
    "choose": Verb("breakeven.cli.choose", "Find the best model for this machine, or another, and how sure that is."),
    "cost": Verb("breakeven.cli.cost", "Price models at a load, and say at which load the cheaper one changes."),
    "decide": Verb("breakeven.cli.decide", "Which model to run for a workload, and at what load the answer flips."),
    "claims": Verb("breakeven.cli.claims", 'Judge the sentences people come with, such as "MoE is 10 times faster".'),
    "serve": Verb("breakeven.cli.serve", "Serve models behind one endpoint, each request where it is served best."),
    "simulate": Verb("breakeven.cli.simulate", "Simulate traffic on a predicted engine: percentiles, goodput, queue."),
    "explain": Verb("breakeven.cli.explain", "Say why the gateway sent a request where it did."),
    "calibrate": Verb("breakeven.cli.calibrate", "Measure this machine with small probes, so that predict knows it."),
    "keys": Verb("breakeven.cli.keys", "Make, list and revoke the keys that clients of the gateway carry."),
    "check": Verb("breakeven.cli.check", "Compare a run with a saved one; exit status 1 when it got worse."),
    "experiment": Verb("breakeven.cli.experiment", "Show how a gateway's experiments stand: A/B, shadow, canary."),
    "report": Verb("breakeven.cli.report", "Compute a study again from its event log, and write its page."),
    "models": Verb("breakeven.cli.models", "List the catalogue, or show one model: counts, bytes, KV, experts."),
    "machines": Verb("breakeven.cli.machines", "List chips known by name, or show one: bandwidth, peaks, prices."),
    "machine": Verb("breakeven.cli.machine", "Describe this machine as an engine sees it."),
    "synth": Verb("breakeven.cli.synth", "Write a weight file of a model's exact shapes, without its weights."),
    "cache": Verb("breakeven.cli.cache", "List or prune the weight files written so far."),
    "evaluate": Verb("breakeven.cli.evaluate", "Say how well models predict a text, by language, and against another."),
    "quantize": Verb("breakeven.cli.quantize", "Write a model in fewer bits, beside what that cost in quality."),
    "experts": Verb("breakeven.cli.experts", "Make experts of a dense file; prune, sort, merge, train others."),
    "export": Verb("breakeven.cli.export", "Write a model in another form: GGUF, a Hugging Face directory, ONNX."),
    "train": Verb("breakeven.cli.train", "Train dense, MoE and hybrid models of equal size; say which learned more."),
    "tune": Verb("breakeven.cli.tune", "Train adapters on a text, merge them, and prove that this is what is served."),
    "distill": Verb("breakeven.cli.distill", "Teach a small model by a large one, beside a twin without teacher."),
    "trace": Verb("breakeven.cli.trace", "Show which experts a text is routed to."),
    "profile": Verb("breakeven.cli.profile", "Show where a model's time goes, by kind of node."),
}


def help_text() -> str:
    """The root's help."""
    lines = [f"  {name:<10} {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "Usage: breakeven VERB [OPTIONS] [ARGS]...",
            "",
            "Mixture-of-Experts or dense: which language model should run here, and at what load does the answer flip?",
            "",
            "Verbs:",
            *lines,
            "",
            "Options:",
            "  --version  Print the version.",
            "  --help     Print this; `breakeven VERB --help` explains a verb.",
            "",
        ]
    )


def _run_to_its_end(run: Callable[[], object]) -> object:
    """`run`, which SIGTERM and SIGHUP end as Ctrl-C does: what it was making, gigabytes, is removed and not left."""
    import signal
    import threading

    taken: list[signal.Signals] = []

    def end(_number: int, _frame: object) -> None:
        for number in taken:
            signal.signal(number, signal.SIG_IGN)  # a second one must not cut the tidying short
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        # What is ignored stays so, as under nohup.
        ending = [signal.SIGTERM]
        if sys.platform != "win32":
            ending.append(signal.SIGHUP)
        taken += [each for each in ending if signal.getsignal(each) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        return run()
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def run_verb(name: str, args: list[str]) -> int:
    """Load the verb `name` and run it; returns its exit status. Raises UserError when there is no such verb."""
    if name not in VERBS:
        from difflib import get_close_matches

        near = get_close_matches(name, VERBS, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the verbs are {', '.join(VERBS)}."
        what = "option" if name.startswith("-") else "verb"
        raise UserError(f"no such {what}: {name}; {hint}")
    from functools import partial
    from importlib import import_module

    from typer.main import get_command

    command = get_command(import_module(VERBS[name].module).app)
    # typer gives every app its own completion options, which would complete `breakeven`, not one verb of it.
    command.params = [param for param in command.params if param.name not in COMPLETION_OPTIONS]
    if any(param.name == "engine_flag" for param in command.params) and "--" in args:
        at = args.index("--")  # what stands behind it is the engine's, to the letter
        args = [*args[:at], *(f"--engine-flag={flag}" for flag in args[at + 1 :])]
    run = partial(command.main, args, prog_name=f"breakeven {name}", standalone_mode=False)
    status = _run_to_its_end(run) if name in LAB else run()
    # Outside standalone mode the command's own return value comes back; only an integer is a status.
    return status if isinstance(status, int) else 0


def _check_text(args: list[str]) -> None:
    """Raise UserError for a word that is no text: what a file's name holds that is not UTF-8, no JSON can repeat."""
    for word in args:
        if any("\udc80" <= letter <= "\udcff" for letter in word):
            raise UserError(NOT_TEXT.format(printable(word)))


def dispatch(args: list[str]) -> int:
    """Run one command line (without the program's name); returns the exit status."""
    _check_text(args)
    if not args or args[0] in ("--help", "-h", "help"):
        sys.stdout.write(help_text())
        return 0 if args else UserError.exit_status
    if args[0] == "--version":
        sys.stdout.write(f"breakeven {__version__}\n")
        return 0
    return run_verb(args[0], args[1:])


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _open_streams() -> None:
    """Give a stream that was closed (`>&-`) to nobody.

    Python sets it to None, and its number would go to the first file that is opened; what an engine prints would land
    there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8")
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _run(args: list[str]) -> int:
    try:
        status = dispatch(args)
        sys.stdout.flush()
    except BreakevenError as error:
        complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) left: nothing more to say, and Python's flush at exit must not say it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UnicodeEncodeError as error:
        # A directory's or a file's name that nobody typed here; results are JSON, which cannot hold it.
        if not any("\udc80" <= letter <= "\udcff" for letter in error.object[error.start : error.end]):
            raise
        complain(NOT_TEXT.format(printable(error.object)))
        return UserError.exit_status
    except OSError as error:
        if error.errno in _REFUSED and error.filename is not None:
            complain(f"{error.filename}: {error.strerror}; give what you may read and write, or allow it")
            return UserError.exit_status
        if error.errno not in _DISK_FULL:
            raise
        # What Python still holds of the output would fail again, with a traceback, as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(
            f"{error.filename or 'the output'}: cannot be written ({error.strerror}); make room, or write elsewhere"
        )
        return 1
    except Exception as error:
        # typer is imported by now if it is what raised; importing it at the top would cost --help 0.1 s.
        from typer import Abort
        from typer.exceptions import TyperException

        if isinstance(error, Abort):
            status = INTERRUPTED
        elif isinstance(error, TyperException):
            # A verb called without anything has printed its help already and has no message.
            if text := error.format_message().rstrip("."):
                complain(f"{text}. Try: breakeven {args[0]} --help")
            return error.exit_code
        else:
            raise
    if status == INTERRUPTED:
        complain("interrupted.")
    return status


def main() -> None:
    """Entry point of the `breakeven` command."""
    _open_streams()
    sys.exit(_run(sys.argv[1:]))
