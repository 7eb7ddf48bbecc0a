"""python -m study: run experiments, attack or compress their networks, show what is missing, measure costs."""

from __future__ import annotations

import argparse
import os
import sys


def _engines() -> argparse.ArgumentParser:
    """The options that say where the work is done, and that a worker is not given."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--engine", default="local", help="local (default) or slurm: jobs that share the work")
    parser.add_argument("--workers", type=int, metavar="N", help="with --engine slurm: how many jobs (default 1)")
    parser.add_argument("--time", help="of a worker, as sbatch takes it (default 4:00:00); then it is queued again")
    parser.add_argument("--partition", help="of the cluster (default: its own)")
    parser.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE", help="more options of sbatch, e.g. gres=gpu:1 cpus-per-task=4"
    )
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("experiment", help="name of a file in book/experiments, or a path to a TOML file")
    which.add_argument("--preset", default="paper", help="paper (default) or smoke")
    which.add_argument(
        "--only", nargs="+", default=[], metavar="GLOB", help="only these run_ids, e.g. 'dense-*' '*-s0'"
    )
    how = argparse.ArgumentParser(add_help=False, parents=[which, _engines()])
    how.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    how.add_argument("--max-minutes", type=float, help="stop after this; what is unfinished goes on in the next run")
    how.add_argument("--jobs", type=int, default=1, help="processes of one thread each (default 1)")
    run = commands.add_parser("run", parents=[how], help="fill in the missing cells of an experiment")
    run.add_argument(
        "--together", type=int, default=1, metavar="K", help="train K seeds at once, as one batch (default 1)"
    )
    run.add_argument(
        "--rehearse", action="store_true", help="run all of it once with few images, epochs and steps, and keep nothing"
    )
    conditioning = commands.add_parser(
        "conditioning",
        parents=[which],
        help="measure the relative condition number of the trained networks of an experiment",
    )
    conditioning.add_argument("--images", type=int, default=500, help="the first test images (default 500)")
    attack = commands.add_parser(
        "attack", parents=[how], help="measure the robustness of the trained networks of an experiment"
    )
    attack.add_argument("--attacks", nargs="+", default=[], metavar="GLOB", help="only these attacks of the suite")
    compress = commands.add_parser(
        "compress", parents=[how], help="compress the trained networks of an experiment, and measure"
    )
    compress.set_defaults(attacks=[])
    commands.add_parser(
        "publish",
        parents=[which],
        help="write the kept weights of completed cells beside their tables, for others to attack",
    )
    status = commands.add_parser("status", help="cells done, missing, diverged and failed per experiment")
    status.add_argument("--verbose", action="store_true", help="list the run_ids")
    fetch = commands.add_parser("data", help="fetch data sets into the cache and check them")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    bench = commands.add_parser("bench", help="measure what training and inference cost, as ratios to dense")
    bench.add_argument(
        "--table",
        default="training",
        help="training (default), integrators, peers, lmo, budgets; growth, retractions, clip, ablation, lmo_growth, "
        "results_folder, adaptation, architectures",
    )
    nets = "lenet5 (default), vgg16, wrn16_4, resnet20, resnet18, vit; of budgets: lenet5, lenet5_mnist, resnet8"
    bench.add_argument("--net", nargs="+", default=["lenet5"], help=nets)
    bench.add_argument("--ratio", nargs="+", type=float, default=[0.5, 0.8, 0.9], help="rank ratios removed")
    bench.add_argument("--batch", type=int, default=128)
    bench.add_argument(
        "--repeats", type=int, default=15, help="interleaved rounds; medians are shown (default 15); of budgets: seeds"
    )
    bench.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    bench.add_argument("--json", action="store_true", help="print JSON rows instead of a table")
    bench.add_argument("--save", action="store_true", help="also write results/bench/<device>/<table>.csv")
    findings = commands.add_parser("findings", help="what the book says of the committed results, and whether it holds")
    findings.add_argument("--fill", action="store_true", help="write the numbers into the pages that quote them")
    related = commands.add_parser("related", help="put the claims of related systems to the test, at a small scale")
    related.add_argument("systems", nargs="+", metavar="SYSTEM", help="keys of study.theory.related.SYSTEMS")
    related.add_argument("--seeds", type=int, default=3, help="at least 2 (default 3)")
    related.add_argument("--save", action="store_true", help="also write results/related")
    return parser


def _submit(options: argparse.Namespace, arguments: list[str]) -> None:
    """Submit workers that run the command with `arguments`, after the checks that need none of their devices."""
    from study.experiments.cells import check_together, selected
    from study.experiments.engines import ENGINES
    from study.experiments.engines.local import check_device_name, deadline_of
    from study.experiments.specification import Experiment
    from study.results import files
    from wellcond.convert import matching
    from wellcond.errors import invalid

    spec = Experiment.load(options.experiment, options.preset)
    selected(spec, options.only)
    check_device_name(options.device)
    deadline_of(options.jobs, options.max_minutes)
    if options.jobs > 1:
        raise invalid(
            "jobs", options.jobs, f"1 with --engine {options.engine}, where --workers says how many share the work"
        )
    if options.command == "run":
        check_together(options.together)
        if options.rehearse:
            raise invalid("rehearse", options.rehearse, f"absent with --engine {options.engine}")
    elif options.attacks:
        matching(options.attacks, [grid.name for grid in spec.suite], "attacks")
    files.check_writable(spec.folder())
    files.check_locks()
    name = f"{spec.name}-{spec.preset}"
    engine = ENGINES[options.engine]
    jobs = engine.submit(
        arguments,
        name=name,
        workers=1 if options.workers is None else options.workers,
        time=options.time,
        partition=options.partition,
        options=options.slurm or (),
    )
    ids = jobs[0] if len(jobs) == 1 else f"{jobs[0]} to {jobs[-1]}"
    print(f"{spec.name} ({spec.preset}): submitted {ids}; logs in {engine.logs(name)}; see python -m study status")


def _is_local(options: argparse.Namespace) -> bool:
    """Whether this process does the work. Raises ValueError for an unknown engine, and for options of another one."""
    from study.experiments.engines import ENGINES
    from wellcond.errors import invalid

    if options.engine not in ("local", *ENGINES):
        raise invalid("engine", options.engine, " or ".join(("local", *ENGINES)))
    for field in ("workers", "time", "partition", "slurm") if options.engine == "local" else ():
        if (value := getattr(options, field)) is not None:
            raise invalid(field, value, "absent without --engine slurm")
    return bool(options.engine == "local")


def _run(options: argparse.Namespace) -> None:
    import torch

    from study.experiments.cells import run_experiment
    from study.experiments.engines.local import pick_device
    from study.experiments.rehearsal import rehearse
    from study.experiments.specification import Experiment
    from study.training import distributed

    torch.set_num_threads(1)
    spec = Experiment.load(options.experiment, options.preset)
    device = pick_device(options.device)
    if options.rehearse:
        counts = rehearse(spec, device=device, only=options.only)
        print(f"{spec.name}: rehearsed, " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        return
    with distributed.joined(device) as processes:
        found = run_experiment(
            spec,
            device=device,
            max_minutes=options.max_minutes,
            jobs=options.jobs,
            only=options.only,
            together=options.together,
            progress=processes.rank == 0,
        )
    if processes.rank > 0:
        return
    print(f"{spec.name} ({spec.preset}): {len(found.runs)} cells done, {len(found.missing)} missing; {spec.folder()}")


def _conditioning(options: argparse.Namespace) -> None:
    from collections import Counter

    import torch

    from study.experiments.conditioning import measure_conditioning
    from study.experiments.specification import Experiment

    torch.set_num_threads(1)
    spec = Experiment.load(options.experiment, options.preset)
    outcome = measure_conditioning(spec, n_images=options.images, only=options.only)
    for reason, count in Counter(outcome.values()).most_common():
        print(f"{count} {'cell' if count == 1 else 'cells'}: {reason}")


def _publish(options: argparse.Namespace) -> None:
    import torch

    from study.experiments.publishing import publish
    from study.experiments.specification import Experiment

    torch.set_num_threads(1)
    spec = Experiment.load(options.experiment, options.preset)
    for run_id, outcome in publish(spec, only=options.only).items():
        print(f"{run_id}: {outcome}")


def _assess(options: argparse.Namespace) -> None:
    import torch

    from study.experiments.specification import Experiment
    from study.experiments.tasks import assess, progress
    from study.measurement.registry import tables_of

    torch.set_num_threads(1)
    spec = Experiment.load(options.experiment, options.preset)
    which = {"only": options.only, "attacks": options.attacks, "tables": tables_of(options.command)}
    assess(spec, device=options.device, max_minutes=options.max_minutes, jobs=options.jobs, **which)
    done, total = progress(spec, **which)
    print(f"{spec.name} ({spec.preset}): {done} of {total} measurements on completed cells; {spec.folder()}")


def _status(options: argparse.Namespace) -> None:
    from study.experiments.progress import status
    from study.experiments.specification import Experiment
    from study.experiments.tasks import progress

    head = ("cells", "done", "missing", "diverged", "failed", "measured", "to measure")
    print(f"{'experiment':<36}" + "".join(f" {name:>10}" for name in head))
    for row in status():
        measured, wanted = progress(Experiment.load(row["experiment"]))
        counts = [row["cells"], row["done"], *(len(row[key]) for key in ("missing", "diverged", "failed"))]
        counts += [measured, wanted - measured]
        print(f"{row['experiment']:<36}" + "".join(f" {count:>10}" for count in counts))
        for run_id in dict.fromkeys([*row["progress"], *row["workers"]]):
            header, worker = row["progress"].get(run_id), row["workers"].get(run_id)
            what = "in progress" if run_id in row["missing"] else "being measured"
            how_far = f", epoch {header.epoch} of {header.epochs}" if header else ""
            print(f"  {what}: {run_id}{how_far}" + (f"; {worker}" if worker else ""))
        for key in ("missing", "diverged", "failed") if options.verbose else ():
            for run_id in row[key]:
                print(f"  {key}: {run_id}")


def _data(options: argparse.Namespace) -> None:
    from study.data import load

    for name in options.names:
        found = load(name)
        print(f"{name}: {len(found.train) + len(found.validation)} + {len(found.test)} images, sha256 {found.sha256}")


def _bench(options: argparse.Namespace) -> None:
    import json

    import pandas as pd
    import torch

    from study import paths
    from study.benches import tables as bench
    from study.experiments.engines.local import pick_device
    from study.results import store as results
    from study.results.provenance import environment, now

    torch.set_num_threads(1)
    device = pick_device(options.device)
    about = environment(device)
    by_net = options.table in bench.BY_NET
    shown = []
    for net in options.net if by_net else options.net[:1]:
        started = now()
        rows = bench.measure(
            options.table, net=net, ratios=options.ratio, batch=options.batch, repeats=options.repeats, device=device
        )
        shown += rows
        if options.save:
            command = f"python -m study bench --table {options.table} --save --device {device}"
            which = f"--net {net} --ratio {' '.join(map(str, options.ratio))} --batch {options.batch}"
            provenance = {
                "command": f"{command} {which}" if by_net else command,
                "repeats": options.repeats,
                "started": started,
                "finished": now(),
                **about,
            }
            folder = paths.results() / "bench" / device
            results.save_table(folder, options.table, rows, provenance, key="net" if by_net else "")
    if options.json:
        blank = [{key: None if value != value else value for key, value in row.items()} for row in shown]  # no NaN
        print(json.dumps(blank, indent=1))
    else:
        print(pd.DataFrame(shown).to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def _related(options: argparse.Namespace) -> None:
    import pandas as pd
    import torch

    from study.theory import related

    torch.set_num_threads(1)
    for system in options.systems:
        findings, rows = related.measure(system, seeds=options.seeds)
        if options.save:
            related.save(system, findings, rows, seeds=options.seeds)
        print(pd.DataFrame([finding.row() for finding in findings]).to_string(index=False))


def _findings(options: argparse.Namespace) -> None:
    from study import paths
    from study.findings.finding import every, fill, pages

    if options.fill:
        for file in fill(pages()):
            print(f"filled in: {file.relative_to(paths.ROOT)}")
    for key, compute in every().items():
        found = compute()
        numbers = ", ".join(
            f"{name} {number.text}{'' if number.holds else ' (!)'}" for name, number in found.numbers.items()
        )
        print(f"{'holds' if found.holds else 'FAILS':<6} {key}: {found.claim} [{numbers}]")


COMMANDS = {
    "run": _run,
    "conditioning": _conditioning,
    "publish": _publish,
    "attack": _assess,
    "compress": _assess,
    "status": _status,
    "data": _data,
    "bench": _bench,
    "related": _related,
    "findings": _findings,
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status. Bad input ends in one line on stderr."""
    # before torch starts its thread pool: spinning threads cost far more than they bring on a shared machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    try:
        if "engine" not in options or _is_local(options):
            COMMANDS[options.command](options)
        else:
            _submit(options, _engines().parse_known_args(given)[1])
    except (ValueError, FileNotFoundError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__module__.split(".")[0] != "study":
            raise
        print(f"study: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"study: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: interrupted; run again to go on from the last epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
