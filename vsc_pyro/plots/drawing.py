"""Drawings of one datum: a picture, bars or a line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import bool_or_auto, sizes

# M. Okabe, K. Ito (2008), Color universal design: hues that differ for the colour-blind.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_MOST_BARS = 40  # features with room for their names
_ZEROS = 0.25  # least share of zero pixels in pictures of ink
_BAR = 0.1  # height in inches of a bar with a legible name
_MARKED = 3  # features named on a wide line
_PICTURE, _LINE = 0.75, 0.6  # heights of panels in inches


class ImageStyle(TypedDict, total=False):
    """The keyword arguments of `Style` other than `names`."""

    image_shape: int | Sequence[int] | None
    ink: bool | str


class Style(ImageStyle, total=False):
    """Keyword arguments of every function that draws data.

    Data of shape ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)`` are pictures; other numbers of channels are drawn side by
    side. A vector of D features is drawn as bars for D up to 40, the first on top, and as a line beyond.

    Attributes:
        names: D names of features. Data with names are vectors, whatever their shape.
        image_shape: shape of a flat datum as a picture, such as ``(28, 28)`` or ``(3, 32, 32)``.
        ink: True if large values of grey pictures are dark, on white. ``"auto"`` means True if all values lie in [0, 1]
            and at least a quarter of them are exactly 0, as in handwriting; large values of photographs are bright.
            Colours of colour pictures are unchanged.
    """

    names: Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A way to draw data of one kind, all on one scale.

    Attributes:
        shape: shape of a datum, ``(D,)`` for bars and lines.
        limits: the values shown as white and black, or the ends of the axis.
        cmap: colour map of grey pictures.
        names: names of a vector's features, or None.
    """

    shape: tuple[int, ...]
    limits: tuple[float, float]
    cmap: str = "gray"
    names: tuple[str, ...] | None = None

    @property
    def kind(self) -> str:
        if len(self.shape) > 1:
            return "picture"
        return "bars" if math.prod(self.shape) <= _MOST_BARS else "line"

    @property
    def height(self) -> float:
        """Height in inches of a legible panel."""
        return {"picture": _PICTURE, "bars": max(_PICTURE, 0.2 + _BAR * self.shape[0]), "line": _LINE}[self.kind]

    @property
    def width_of_names(self) -> float:
        """Width in inches of the labels to the left of bars or lines."""
        if self.kind == "picture":
            return 0.0
        return 0.06 * max(map(len, self.feature_names)) + 0.1 if self.kind == "bars" else 0.4

    @property
    def feature_names(self) -> tuple[str, ...]:
        """`names`, or numbers from 0."""
        return self.names or tuple(map(str, range(self.shape[0])))

    def per_row(self, most: int) -> int:
        """Return the number of drawings in a row, `most` unless they are lines, which need more room."""
        return min(most, 3) if self.kind == "line" else most

    def between(self, low: float, high: float, cmap: str | None = None) -> Drawing:
        """Return the same drawing on another scale."""
        return dataclasses.replace(self, limits=(low, high), cmap=cmap or self.cmap)

    def holding(self, rows: Sequence[Tensor]) -> Drawing:
        """Return a drawing of vectors scaled to the vectors shown, within three times the range of the data."""
        if self.kind == "picture":
            return self
        low, high = self.limits
        shown = torch.cat([row.flatten() for row in rows])
        least, most = (float(end) for end in shown[shown.isfinite()].aminmax())
        room = high - low
        least, most = max(min(least, 0.0), low - room), min(max(most, 0.0), high + room)
        return self.between(least, most if most > least else least + 1.0)

    def draw(self, axes: Axes, datum: Tensor, first: bool = True, last: bool = True) -> Any:
        """Draw one datum in `axes`, and return the image, bars or line.

        In rows of vectors, the `first` of a row labels values or features, and the `last` row its scale.
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
        if axes.bbox.height / _dpi(axes) < 0.06 * len(values):  # the names would overlap
            axes.tick_params(labelleft=False)
        return bars

    def _draw_line(self, axes: Axes, values: np.ndarray, first: bool, last: bool) -> Any:
        width = 0.9 if len(values) <= 200 else 0.5
        # A value between two missing ones has no line.
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
        inches = axes.bbox.width / _dpi(axes)
        room = 0.07 * max(map(len, self.feature_names)) / max(inches, 1e-9) * len(values)  # a name's width, in features
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
    """Return the `Drawing` of data ``(N, ...)`` under the keyword arguments of `Style`.

    Raises:
        ValueError: another number of names than features, an `image_shape` of another number of pixels or of less than
            two dimensions, or an unknown `ink`.
    """
    size = math.prod(data.shape[1:])
    shape = tuple(data.shape[1:])
    ink = bool_or_auto("ink", ink)
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise ValueError(f"names must hold one name for each of {size} features, got {names!r}")
        names = tuple(map(str, names))
        if len(names) != size:
            raise ValueError(f"names must hold one name for each of {size} features, got {len(names)}; pass {size}")
    if image_shape is not None:
        shape = sizes("image_shape", image_shape)
        if math.prod(shape) != size or len(shape) < 2:
            raise ValueError(
                f"image_shape must be the height and width, or channels, height and width, of {size} pixels, "
                f"got {image_shape!r}; omit it to draw vectors"
            )
    if names is not None or sum(length > 1 for length in shape) <= 1:
        shape = (size,)
    if len(shape) == 1:
        low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
        return Drawing(shape, (low, high if high > low else 1.0), names=names)
    limits = _limits_of(data)
    if ink == "auto":
        ink = limits == (0.0, 1.0) and 1 - int(data.count_nonzero()) / data.numel() >= _ZEROS
    return Drawing(shape, limits, "gray_r" if ink else "gray")


def show(axes: Axes, picture: Tensor, limits: tuple[float, float], cmap: str) -> Any:
    """Draw one picture in axes without a frame, coloured by `cmap` between the limits, and return the image."""
    low, high = limits
    pixels = as_pixels(picture)
    if pixels.ndim == 3:  # matplotlib ignores limits for colours
        pixels = ((pixels - low) / (high - low)).clip(0, 1)
    axes.axis("off")
    return axes.imshow(pixels, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")


def as_pixels(x: Tensor) -> np.ndarray:
    """Return one datum ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)`` as pixels, other numbers of channels side by side."""
    if x.ndim > 2:
        x = x.flatten(0, -3)
        x = x.permute(1, 2, 0) if len(x) == 3 else x.transpose(0, 1).flatten(1)
    return x.cpu().numpy()


def _limits_of(x: Tensor) -> tuple[float, float]:
    """Return (0, 1) for data within them, else the range of the data."""
    low, high = float(x.min()), float(x.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1.0)


def _dpi(axes: Axes) -> float:
    return cast(Figure, axes.get_figure(root=True)).dpi


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low)
    return low - margin if low else 0.0, high + margin if high else 0.0
