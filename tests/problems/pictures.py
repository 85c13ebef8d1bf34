"""A figure as pixels."""

import io

from matplotlib.figure import Figure
from matplotlib.image import imread


def pixels(figure):
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    buffer.seek(0)
    return imread(buffer)
