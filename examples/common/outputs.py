"""The folder that a run writes to: what is there, and how it is replaced without being lost."""

import contextlib
import json
import os
import shutil
import sys
import tempfile

from vsc_pyro._files import check_writable, replacing
from vsc_pyro.training.checkpoints import shown

# Settings that earlier runs do not name, and what they were.
EARLIER = {"learn_slab": False, "cooldown": None}


def settings(args, free):
    return {name: value for name, value in vars(args).items() if name not in free}


def check_output(args, files, last, free):
    """Refuse to touch a run that is there unless told to.

    A run leaves `files`, one of them, `last`, when it is finished; a resumption may change the settings in `free`.
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
        try:
            before = EARLIER | read_json(config)
        except ValueError as error:
            raise SystemExit(f"{error}; pass --overwrite") from error
        changed = [
            f"{k}={shown(before.get(k))} (now {shown(v)})"
            for k, v in settings(args, free).items()
            if before.get(k) != v
        ]
        if changed:
            raise SystemExit(
                f"{args.output} holds a run with {', '.join(changed)}; resume with the same settings, those of {config}"
            )


def refuse_to_replace(args, *names):
    """For an example that cannot go on: refuse what is there unless told to replace it, and what cannot be written."""
    for name in names:
        if (args.output / name).exists() and not args.overwrite:
            raise SystemExit(f"{args.output / name} exists; pass --overwrite to replace it, or another --output")
    check_writable(args.output / names[0])


@contextlib.contextmanager
def in_place_of(folder, names, worth_keeping=()):
    """Within, `folder` is without the files `names`, which are deleted at the end, when others have replaced them.

    After an error or an interrupt they are put back, and what was written in their place is deleted; unless one of the
    files `worth_keeping` was: then that stays, and a line says where the old ones are.
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
            print(f"what was to be replaced is in {aside}", file=sys.stderr)
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


def write_json(path, content):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path, kind=dict):
    """Read back a file of `write_json`; raise a `ValueError` that names a file which it cannot have written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} is damaged: it must hold a {kind.__name__}, got {shown(content)}")
    return content


def check_entries(path, content, kinds):
    """Raise `ValueError`, with file and key, unless `content` has all of `kinds`, and a value of each kind."""
    for name, is_one in kinds.items():
        if name not in content:
            raise ValueError(f"{path} is damaged: it lacks {name}; make the run anew")
        if not is_one(content[name]):
            raise ValueError(
                f"{path} is damaged: {name} must be {is_one.__doc__}, got {shown(content[name])}; make the run anew"
            )


def check_known(path, content, known):
    """Raise `ValueError`, with file and key, where `content` has other keys than the `known` ones."""
    for name in content:
        if name not in known:
            raise ValueError(f"{path} is damaged: it has {shown(name)}, which no run writes; make the run anew")


def number(value):
    """a finite number"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def number_or_none(value):
    """a finite number or null"""
    return value is None or number(value)


def count(value):
    """a whole number of at least 0"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def numbers(value):
    """a list of finite numbers"""
    return isinstance(value, list) and all(map(number, value))


def text(value):
    """a text"""
    return isinstance(value, str)


def texts(value):
    """a list of texts"""
    return isinstance(value, list) and all(map(text, value))


def text_or_none(value):
    """a text or null"""
    return value is None or text(value)


def truth(value):
    """true or false"""
    return isinstance(value, bool)
