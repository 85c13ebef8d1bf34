"""Web pages about a trained model, each one file that needs no network: `explore` and `report`."""

from vsc_pyro.pages.explorer import explore
from vsc_pyro.pages.inspection import REPORT_FILES, report

__all__ = ["REPORT_FILES", "explore", "report"]
