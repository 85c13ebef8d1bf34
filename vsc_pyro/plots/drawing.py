"""How one datum is drawn: as a picture, as bars or as a line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from vsc_pyro._arguments import bool_or_auto, sizes

# M. Okabe, K. Ito (2008), Color universal design: hues that differ for the colour-blind.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_MOST_BARS = 40  # features whose names there is room for
_ZEROS = 0.25  # share of pixels that are exactly 0 in pictures of ink
_BAR = 0.1  # inches of a bar whose name can be read
_MARKED = 3  # features that a wide line names
_PICTURE, _LINE = 0.75, 0.6  # inches of a panel's height


class Style(TypedDict, total=False):
    """Keyword arguments of every function that draws data.

    Data of shape ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)`` are pictures; of another number of channels these stand
    beside one another. A vector of D features is drawn as bars, the first on top, up to D = 40, and beyond as a line.

    Attributes:
        names: D names of features. Data with names are vectors, whatever their shape.
        image_shape: shape of the picture that a flat datum is, such as ``(28, 28)`` or ``(3, 32, 32)``.
        ink: whether grey pictures are dark where they are large, on white. ``"auto"``: if all values lie in [0, 1] and
            a quarter of them or more are exactly 0, as in handwriting; large values of photographs are bright. Pictures
            in colour are shown as they are.
    """

    names: Sequence[str] | None
    image_shape: int | Sequence[int] | None
    ink: bool | str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A way to draw data of one kind, all on one scale.

    Attributes:
        shape: of a datum as it is drawn, ``(D,)`` for bars and lines.
        limits: the values that are white and black, or the ends of the axis.
        cmap: colours of grey pictures.
        names: of the features of a vector, or None.
    """

    shape: tuple[int, ...]
    limits: tuple[float, float]
    cmap: str = "gray"
    names: tuple[str, ...] | None = None

    @property
    def kind(self) -> str:
        if len(self.shape) > 1:
            return "picture"
        return "bars" if self.shape[0] <= _MOST_BARS else "line"

    @property
    def height(self) -> float:
        """Inches of a panel in which everything can be read."""
        return {"picture": _PICTURE, "bars": max(_PICTURE, 0.2 + _BAR * self.shape[0]), "line": _LINE}[self.kind]

    @property
    def width_of_names(self) -> float:
        """Inches of what stands left of bars or lines."""
        if self.kind == "picture":
            return 0.0
        return 0.06 * max(map(len, self.feature_names)) + 0.1 if self.kind == "bars" else 0.4

    @property
    def feature_names(self) -> tuple[str, ...]:
        """`names`, or numbers from 0."""
        return self.names or tuple(map(str, range(self.shape[0])))

    def per_row(self, most: int) -> int:
        """How many stand in a row: lines need room."""
        return min(most, 3) if self.kind == "line" else most

    def between(self, low: float, high: float, cmap: str | None = None) -> Drawing:
        """The same on another scale."""
        return dataclasses.replace(self, limits=(low, high), cmap=cmap or self.cmap)

    def holding(self, rows: Sequence[Tensor]) -> Drawing:
        """The same on the scale of the vectors shown, up to three times the range of the data."""
        if self.kind == "picture":
            return self
        low, high = self.limits
        shown = torch.cat([row.flatten() for row in rows])
        least, most = (float(end) for end in shown[shown.isfinite()].aminmax())
        room = high - low
        least, most = max(min(least, 0.0), low - room), min(max(most, 0.0), high + room)
        return self.between(least, most if most > least else least + 1.0)

    def draw(self, axes: Axes, datum: Tensor, first: bool = True, last: bool = True) -> Any:
        """Draw one datum in axes; of a row of vectors the `first` names values or features, the `last` row its scale.

        Returns what was drawn: an image, bars or a line.
        """
        datum = datum.reshape(self.shape)
        if self.kind == "picture":
            return show(axes, datum, self.limits, self.cmap)
        axes.spines[["top", "right"]].set_visible(False)
        draw = self._draw_bars if self.kind == "bars" else self._draw_line
        return draw(axes, datum.cpu().numpy(), first, last)

    def _draw_bars(self, axes: Axes, values: np.ndarray, first: bool, last: bool) -> Any:
        at = np.arange(len(values))
        bars = axes.barh(at, values, 0.75, color=[BLUE if value >= 0 else ORANGE for value in values])
        axes.axvline(0, color="0.6", linewidth=0.6)
        axes.set(xlim=_with_margin(*self.limits), ylim=(len(values) - 0.4, -0.6))
        axes.set_yticks(at, self.feature_names)
        axes.set_xticks(self.limits, [f"{end:.2g}" for end in self.limits])
        axes.tick_params(labelsize=6, length=2, pad=1, labelleft=first, labelbottom=last)
        inches = axes.bbox.height / axes.get_figure(root=True).dpi
        if inches < 0.06 * len(values):  # the names would hide one another
            axes.tick_params(labelleft=False)
        return bars

    def _draw_line(self, axes: Axes, values: np.ndarray, first: bool, last: bool) -> Any:
        width = 0.9 if len(values) <= 200 else 0.5
        # A value between two that are missing has no line.
        marker = "." if np.isnan(values).any() else ""
        (line,) = axes.plot(values, color=BLUE, linewidth=width, marker=marker, markersize=1.5)
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axes.set(ylim=_with_margin(*self.limits), xlim=(-0.5, len(values) - 0.5))
        axes.set_yticks(self.limits, [f"{end:.2g}" for end in self.limits])
        axes.set_xticks([0, len(values) - 1])
        axes.tick_params(labelsize=6, length=2, pad=1, labelleft=first, labelbottom=last)
        if self.names:
            self._mark_features(axes, values)
        return line

    def _mark_features(self, axes: Axes, values: np.ndarray) -> None:
        inches = axes.bbox.width / axes.get_figure(root=True).dpi
        room = 0.07 * max(map(len, self.feature_names)) / max(inches, 1e-9) * len(values)  # of a name, in features
        marked: list[int] = []
        for place in np.argsort(-np.abs(np.nan_to_num(values)), kind="stable"):
            if len(marked) == min(_MARKED, inches // 1.5) or not values[place]:
                break
            if all(abs(place - other) > room for other in marked):
                marked.append(int(place))
        for place in marked:
            side = "left" if place < len(values) / 2 else "right"
            value = float(np.clip(values[place], *self.limits))
            axes.annotate(
                self.feature_names[place],
                (place, value),
                (2 if side == "left" else -2, 0),
                textcoords="offset points",
                fontsize=6,
                ha=side,
                va="top" if value > 0 else "bottom",
            )


def drawing_of(
    data: Tensor,
    names: Sequence[str] | None = None,
    image_shape: int | Sequence[int] | None = None,
    ink: bool | str = "auto",
) -> Drawing:
    """How data ``(N, ...)`` are drawn by the arguments that `Style` describes.

    Raises:
        ValueError: another number of names than features, an `image_shape` of another number of pixels or of less than
            two dimensions, or an unknown `ink`.
    """
    size = math.prod(data.shape[1:])
    shape = tuple(data.shape[1:])
    ink = bool_or_auto("ink", ink)
    if names is not None:
        names = tuple(map(str, names))
        if len(names) != size:
            raise ValueError(f"names must hold one name for each of {size} features, got {len(names)}; pass {size}")
    if image_shape is not None:
        shape = sizes("image_shape", image_shape)
        if math.prod(shape) != size or len(shape) < 2:
            raise ValueError(
                f"image_shape must be the height and width, or channels, height and width, of {size} pixels, "
                f"got {image_shape!r}; leave it out to draw vectors"
            )
    elif names is not None or sum(length > 1 for length in shape) <= 1:
        shape = (size,)
    if len(shape) == 1:
        low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
        return Drawing(shape, (low, high if high > low else 1.0), names=names)
    limits = _limits_of(data)
    if ink == "auto":
        ink = limits == (0.0, 1.0) and 1 - int(data.count_nonzero()) / data.numel() >= _ZEROS
    return Drawing(shape, limits, "gray_r" if ink else "gray")


def show(axes: Axes, picture: Tensor, limits: tuple[float, float], cmap: str) -> Any:
    """One picture, in the colours of `cmap` between the limits, in axes without a frame; returns the image."""
    low, high = limits
    pixels = as_pixels(picture)
    if pixels.ndim == 3:  # of colours matplotlib takes no limits
        pixels = ((pixels - low) / (high - low)).clip(0, 1)
    axes.axis("off")
    return axes.imshow(pixels, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")


def as_pixels(x: Tensor) -> np.ndarray:
    """One datum ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)`` as pixels, other numbers of channels beside one another."""
    if x.ndim > 2:
        x = x.flatten(0, -3)
        x = x.permute(1, 2, 0) if len(x) == 3 else x.transpose(0, 1).flatten(1)
    return x.cpu().numpy()


def _limits_of(x: Tensor) -> tuple[float, float]:
    """From 0 to 1 for data within, and for others their range."""
    low, high = float(x.min()), float(x.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1.0)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low)
    return low - margin if low else 0.0, high + margin if high else 0.0
