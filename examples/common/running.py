"""How an example ends: what a user has done wrong, and an interrupt, are one line."""

import sys

from vsc_pyro import NonFiniteLossError


def run(main):
    """Call `main`; an interrupt, which may say how to go on, is told by the exit status that shells give it."""
    try:
        main()
    except KeyboardInterrupt as interrupt:
        print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        sys.exit(130)
    except (ImportError, ValueError, OSError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
