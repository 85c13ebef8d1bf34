"""The output folder of a run: what is in it, and how a new run replaces it without losing it."""

import contextlib
import os
import shutil
import sys
import tempfile

from common.files import read_json, write_json
from vsc_pyro import parallel
from vsc_pyro._files import check_writable
from vsc_pyro.training.checkpoints import shown

# Settings that config.json of old versions lacks, with the values that those runs had.
EARLIER = {"learn_slab": False, "cooldown": None, "validation": None, "patience": None}


def settings(args, free):
    """Return the settings that decide what a run computes: all but those in `free`."""
    return {name: value for name, value in vars(args).items() if name not in free}


def check_output(args, files, last, free):
    """Exit with a message if --output holds a run and the options do not say what to do with it.

    Args:
        files: all that a run writes.
        last: the one of them that only a finished run has.
        free: settings that a resumption may change.
    """
    if args.resume and args.overwrite:
        raise SystemExit("--resume and --overwrite contradict each other; pass one of them")
    there = [args.output / name for name in files if (args.output / name).exists()]
    if not there or args.overwrite:
        return
    if not args.resume:
        state = "a finished" if args.output / last in there else "an unfinished"
        raise SystemExit(
            f"{args.output} holds {state} run; "
            "pass --resume to go on with it, --overwrite to replace it, or another --output"
        )
    config = args.output / "config.json"
    if config in there:
        check_unchanged(config, settings(args, free))


def check_unchanged(config, now):
    """Exit with a message if a setting in `now` differs from that in the file `config`."""
    try:
        before = EARLIER | read_json(config)
    except ValueError as error:
        raise SystemExit(f"{error}; pass --overwrite") from error
    changed = [f"{k}={shown(before.get(k))} (now {shown(v)})" for k, v in now.items() if before.get(k) != v]
    if changed:
        raise SystemExit(
            f"{config.parent} holds a run with {', '.join(changed)}; resume with the same settings, those of {config}"
        )


def refuse_to_replace(args, *names):
    """Exit with a message if one of the files is there without --overwrite; raise if the first cannot be written."""
    for name in names:
        if (args.output / name).exists() and not args.overwrite:
            raise SystemExit(f"{args.output / name} exists; pass --overwrite to replace it, or another --output")
    check_writable(args.output / names[0])


@contextlib.contextmanager
def resumable(args, files, config, checkpoints=("checkpoint.pt",), derived=()):
    """Within this context, a run that can be resumed writes `files` to --output.

    On entry the first process puts the files of a run to be replaced aside, writes config.json, and warns about files
    that other examples derived from the old run; the other processes wait for it. An interrupt says how to continue.

    Args:
        config: content of config.json.
        checkpoints: files that a resumption needs; see `in_place_of`.
        derived: files that other examples make from a finished run.
    """
    is_first = parallel.rank() == 0
    with in_place_of(args.output, files if args.overwrite and is_first else (), checkpoints):
        if is_first:
            for file in (args.output / name for name in derived if (args.output / name).exists()):
                print(f"{file} is out of date; repeat it when this run is finished", file=sys.stderr)
            write_json(args.output / "config.json", config)
        parallel.wait_for_all()  # no process looks for a checkpoint before the old one is out of the way
        try:
            yield
        except KeyboardInterrupt:
            is_kept = args.overwrite and not any((args.output / name).exists() for name in checkpoints)
            raise KeyboardInterrupt(
                f"the run in {args.output} is unchanged"
                if is_kept
                else f"pass --resume to go on with the run in {args.output}"
            ) from None


@contextlib.contextmanager
def in_place_of(folder, names, worth_keeping=()):
    """Put the files `names` in `folder` aside within this context, and delete them on leaving it.

    After an error or an interrupt they are put back, and new files of these names are deleted. If one of the files
    `worth_keeping` has been written, the new files stay instead, and a message says where the old ones are.
    """
    there = [name for name in names if (folder / name).is_file()]
    if not there:
        yield
        return
    aside = type(folder)(tempfile.mkdtemp(prefix="replaced-", dir=folder))
    try:
        move(there, folder, aside)
        yield
    except BaseException:
        if any((folder / name).exists() for name in worth_keeping):
            print(f"the files to be replaced are in {aside}", file=sys.stderr)
            raise
        for name in names:
            if name not in there or (aside / name).exists():
                (folder / name).unlink(missing_ok=True)
        move([name for name in there if (aside / name).exists()], aside, folder)
        shutil.rmtree(aside)
        raise
    shutil.rmtree(aside)


def move(names, source, target):
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target / name)
