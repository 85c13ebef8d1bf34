"""The end of an example: errors of the user, interrupts and warnings become one line each."""

import sys
import warnings

from vsc_pyro import NonFiniteLossError


def run(main):
    """Call `main`; after an interrupt, print its message (how to continue) and exit with 130, as shells do."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        main()
    except KeyboardInterrupt as interrupt:
        print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        sys.exit(130)
    except (ImportError, ValueError, OSError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
