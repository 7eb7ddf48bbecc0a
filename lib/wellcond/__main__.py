"""python -m wellcond: run experiments, show what is missing, fetch data."""

from __future__ import annotations

import argparse
import os
import sys


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wellcond", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fill in the missing cells of an experiment")
    run.add_argument("experiment", help="name of a file in book/experiments, or a path to a TOML file")
    run.add_argument("--preset", default="paper", help="paper (default) or smoke")
    run.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    run.add_argument("--max-minutes", type=float, help="start nothing after this, drop what is unfinished")
    run.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default 1)")
    run.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="only these run_ids, e.g. 'dense-*' '*-s0'")
    status = commands.add_parser("status", help="cells done, missing, diverged and failed per experiment")
    status.add_argument("--verbose", action="store_true", help="list the run_ids")
    fetch = commands.add_parser("data", help="fetch data sets into the cache and check them")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    return parser


def _run(options: argparse.Namespace) -> None:
    import torch

    from wellcond.experiments import Experiment
    from wellcond.runner import run_experiment

    torch.set_num_threads(1)
    spec = Experiment.load(options.experiment, options.preset)
    found = run_experiment(
        spec, device=options.device, max_minutes=options.max_minutes, jobs=options.jobs, only=options.only
    )
    print(f"{spec.name} ({spec.preset}): {len(found.runs)} cells done, {len(found.missing)} missing; {spec.folder()}")


def _status(options: argparse.Namespace) -> None:
    from wellcond.runner import status

    print(f"{'experiment':<20} {'cells':>6} {'done':>6} {'missing':>8} {'diverged':>9} {'failed':>7}")
    for row in status():
        counts = [row["cells"], row["done"], *(len(row[key]) for key in ("missing", "diverged", "failed"))]
        print("{:<20} {:>6} {:>6} {:>8} {:>9} {:>7}".format(row["experiment"], *counts))
        for key in ("missing", "diverged", "failed") if options.verbose else ():
            for run_id in row[key]:
                print(f"  {key}: {run_id}")


def _data(options: argparse.Namespace) -> None:
    from wellcond.data import load

    for name in options.names:
        found = load(name)
        print(f"{name}: {len(found.train) + len(found.validation)} + {len(found.test)} images, sha256 {found.sha256}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status. Bad input ends in one line on stderr."""
    # before torch starts its thread pool: spinning threads cost far more than they bring on a shared machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    try:
        {"run": _run, "status": _status, "data": _data}[options.command](options)
    except (ValueError, FileNotFoundError) as error:
        print(f"wellcond: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wellcond: interrupted; finished cells are kept, run again to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
