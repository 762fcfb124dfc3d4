"""``rrcluster <job> [settings]``: help, composed configuration, exit statuses, clean stops."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from rrcluster.config import Config, as_yaml, group_choices, load, settings_help
from rrcluster.io.lease import Busy
from rrcluster.records import UserError

JOBS = {
    "demo": "the whole job on a small corpus that it draws itself; no GPU, no network",
    "cluster": "image shards to a named tree of clusters",
    "sample": "a balanced sample of a run, in trainers' formats",
    "recluster": "add new shards to a finished run: ids stay, drift is told",
    "adopt": "a finished hierarchy of ssl-data-curation as a run, to sample from and look at",
    "resolve": "write the current cluster ids of every row of a run",
    "report": "write report/index.html of a run again",
    "evaluate": "score a run's levels against labels",
    "status": "what is done, what failed, counts that reconcile",
}
DONE, FAILED, USER_MISTAKE, TOO_MANY_BAD = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``rrcluster`` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: rrcluster <job> [setting=value ...]\n\njobs:")
        for name, sentence in JOBS.items():
            print(f"  {name:<9} {sentence}")
        print("\n`rrcluster <job> --help` explains every setting.")
        return DONE if arguments else USER_MISTAKE
    if arguments[0] == "--version":
        from rrcluster import __version__

        print(f"rrcluster {__version__}")
        return DONE
    if arguments[0] not in JOBS:
        _say(f"rrcluster: no job {arguments[0]!r}; choose one of: {', '.join(JOBS)}")
        return USER_MISTAKE
    job = importlib.import_module(f"pipelines.{arguments[0]}")
    return run(arguments[0], job.main, arguments[1:])


def run(name: str, job: Callable[[Config], int], arguments: Sequence[str]) -> int:
    """Run one job with the contract's exit statuses; a user's mistake is one line on stderr."""
    if "-h" in arguments or "--help" in arguments:
        print(_help(name))
        return DONE
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if "--cfg" in arguments:
            at = arguments.index("--cfg")
            print(as_yaml([a for i, a in enumerate(arguments) if i not in (at, at + 1)]), end="")
            return DONE
        with _stoppable():
            return job(load(arguments))
    except UserError as mistake:
        _say(f"rrcluster {name}: {mistake}")
        return USER_MISTAKE
    except Busy as other:
        _say(f"rrcluster {name}: {other}")
        return FAILED
    except KeyboardInterrupt:
        _say(f"rrcluster {name}: stopped; the same command goes on where it was")
        return FAILED
    except Exception as error:
        if full := _full_disk(error):
            where = f" at {full.filename}" if full.filename else ""
            _say(
                f"rrcluster {name}: no space left{where} ({full.strerror}); make room in run_dir, "
                "and the same command goes on where it was"
            )
            return FAILED
        logging.getLogger("rrcluster").exception("rrcluster %s failed", name)
        return FAILED


def _full_disk(error: BaseException | None) -> OSError | None:
    """The error of a full disk or quota that lies behind ``error``, also on a worker."""
    while error is not None:
        for found in (error, getattr(error, "cause", None)):
            if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT):
                return found
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the job as Ctrl-C does, wherever it comes upon it."""
    told = sys.unraisablehook
    again: list[threading.Timer] = []

    def hook(lost: sys.UnraisableHookArgs) -> None:
        # What a finalizer raises ends nothing: the stop is sent once more, after the finalizer.
        if issubclass(lost.exc_type, KeyboardInterrupt):
            again.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)))
            again[-1].daemon = True
            again[-1].start()
        else:
            told(lost)

    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = told
        for timer in again:
            timer.cancel()


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)


def _help(name: str) -> str:
    lines = [
        f"usage: rrcluster {name} [setting=value ...]    {JOBS[name]}",
        "",
        "groups (choose a whole part at once):",
        f"  encoder=   {', '.join(group_choices('encoder'))}",
        f"  compute=   {', '.join(group_choices('compute'))}",
        "",
        "settings, with their defaults:",
    ]
    for setting, default, sentence in settings_help():
        shown = "null" if default is None else default
        lines.append(f"  {setting}={shown}")
        lines.append(f"      {sentence}")
    lines += [
        "",
        "--cfg job prints the composed configuration; dry_run=true estimates and stops.",
        "exit status: 0 done; 2 a mistake in the settings; 3 done, but more bad images than",
        "corpus.max_bad_fraction; 1 anything else. Running the same command again goes on.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
