"""Files that examples write and read back: JSON, tables and figures."""

import csv
import json

from vsc_pyro._files import replacing
from vsc_pyro.training.checkpoints import shown


def write_json(path, content):
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path, text):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path, rows):
    """Write dictionaries with the same keys as the rows of a table."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_figure(path, figure, dpi):
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def markdown(rows):
    """Return a Markdown table of dictionaries with the same keys; an empty cell becomes "-"."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) or "-" for cell in line) + " |" for line in lines)


def read_json(path, kind=dict):
    """Return the content of a file of `write_json`; raise `ValueError`, with the path, if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} is damaged: it must hold a {kind.__name__}, got {shown(content)}")
    return content


def check_entries(path, content, kinds):
    """Raise `ValueError`, with path and key, unless `content` has every key of `kinds` with a value of that kind.

    A kind is a predicate whose docstring names it, such as `number`.
    """
    for name, is_one in kinds.items():
        if name not in content:
            raise ValueError(f"{path} is damaged: it lacks {name}; repeat the run")
        if not is_one(content[name]):
            raise ValueError(
                f"{path} is damaged: {name} must be {is_one.__doc__}, got {shown(content[name])}; repeat the run"
            )


def check_known(path, content, known):
    """Raise `ValueError`, with path and key, if `content` has a key that is not in `known`."""
    for name in content:
        if name not in known:
            raise ValueError(f"{path} is damaged: it has {shown(name)}, which no run writes; repeat the run")


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
