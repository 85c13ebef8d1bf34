"""How an example ends: what a user has done wrong, an interrupt and a warning are one line each."""

import sys
import warnings

from vsc_pyro import NonFiniteLossError


def run(main):
    """Call `main`; an interrupt, which may say how to go on, is told by the exit status that shells give it."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        main()
    except KeyboardInterrupt as interrupt:
        print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        sys.exit(130)
    except (ImportError, ValueError, OSError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
