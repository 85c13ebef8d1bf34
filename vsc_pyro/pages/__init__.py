"""Web pages about a trained model, `explore`, `report` and `feature_pages`; each is one file that needs no network."""

from vsc_pyro.pages.explorer import explore
from vsc_pyro.pages.features import feature_pages
from vsc_pyro.pages.inspection import REPORT_FILES, report

__all__ = ["REPORT_FILES", "explore", "feature_pages", "report"]
