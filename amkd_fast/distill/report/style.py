"""One look for all pictures: colours by name, sizes, and PNG bytes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = {
    "student": "#7f7f7f",
    "kd": "#0072B2",
    "bss-official": "#E69F00",
    "bss-paper": "#56B4E9",
    "bss-zoo": "#D55E00",
    "bss-near_boundary": "#009E73",
    "amkd": "#CC3377",
    "triplet-ce": "#B8860B",
    "triplet-kd": "#8B5A2B",
    "extended-kd": "#000000",
    "jda-ccd": "#6A3D9A",
    "tald": "#A6CE39",
    "mkd": "#FB8072",
    "dkd": "#1F3A93",
    "rkd": "#17BECF",
    "fitnet": "#66A61E",
    "at": "#E7298A",
    "sp": "#7570B3",
    "crd": "#A6761D",
    "reviewkd": "#1B9E77",
}
# For names that are not above, in their order: as far apart from those and each other (Paul Tol's "muted").
OTHERS = ("#332288", "#999933", "#882255", "#44AA99", "#AA4499", "#117733", "#DDCC77")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for every name: a known method's own (also by its preset alone), else the next of :data:`OTHERS`."""
    others = cycle(OTHERS)
    known = {**COLOURS, **{name.removeprefix("bss-"): colour for name, colour in COLOURS.items()}}
    return {name: known[name] if name in known else next(others) for name in names}


def short(name: str, most: int = 24) -> str:
    """The name, cut where it is too long for a picture."""
    name = name.encode(errors="replace").decode()  # a folder's name need not be Unicode
    return name if len(name) <= most else name[: most - 1] + "…"


@contextmanager
def look() -> Iterator[None]:
    """Draw inside of this, and the user's own style does not matter."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 10.0,
                "figure.facecolor": "white",
                "savefig.facecolor": "white",
                "axes.axisbelow": True,
                "axes.titlesize": 10.0,
                "text.parse_math": False,  # a class may be called $x$
            }
        )
        yield


def picture(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Turn a function that draws a figure into one that returns it as a PNG."""

    @functools.wraps(draw)
    def drawn(*arguments: object) -> bytes:
        with look():
            buffer = io.BytesIO()
            FigureCanvasAgg(draw(*arguments)).print_figure(buffer, dpi=130, format="png")
        return buffer.getvalue()

    return drawn
