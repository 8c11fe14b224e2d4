"""A moving picture: its frames, written as a GIF or as a page that holds its frames and its player.

The page loads nothing. matplotlib's own player does: its buttons come from a font server.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

SUFFIXES = (".gif", ".html")
HOLD = 1.0  # seconds that the last frame stays


@dataclass(frozen=True, repr=False)
class Movie:
    """Frames of the transport.

    Attributes:
        frames: pictures of one size in one palette, the start first.
        times: (k,) of the frames [time].
        fps: frames a second.
        title: what the page is called.
    """

    frames: tuple[Image.Image, ...]
    times: np.ndarray
    fps: float
    title: str = "closed loop"

    def save(self, path: str | Path) -> Path:
        """Write a .gif, or an .html that holds everything it shows.

        Raises:
            ValueError: the name ends in something else.
        """
        path = check_suffix(path)
        if path.suffix.lower() == ".html":
            path.write_text(self.html(), encoding="utf-8")
            return path
        each = round(1000 / self.fps)
        lasts = [each] * (len(self.frames) - 1) + [max(each, round(1000 * HOLD))]
        first, *rest = self.frames
        first.save(path, save_all=True, append_images=rest, duration=lasts, loop=0, optimize=False)
        return path

    def html(self) -> str:
        """A page with the frames, a slider and a button; it loads nothing."""
        return Template(PAGE).substitute(title=html.escape(self.title), player=self._player())

    def _repr_html_(self) -> str:
        return self._player()

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        return f"Movie of {len(self.frames)} frames, {width} by {height}, t = {self.times[0]:g} to {self.times[-1]:g}"

    def _player(self) -> str:
        width, height = self.frames[0].size
        pictures = ",".join(f'"{encoded(frame)}"' for frame in self.frames)
        return Template(PLAYER).substitute(
            frames=pictures, name=f"movie-{sha256(pictures.encode()).hexdigest()[:12]}", title=html.escape(self.title),
            width=width, height=height, last=len(self.frames) - 1, wait=round(1000 / self.fps),
        )  # fmt: skip


def encoded(frame: Image.Image) -> str:
    """A picture as a data address."""
    out = io.BytesIO()
    frame.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def check_suffix(path: str | Path) -> Path:
    """A path that ends in .gif or .html, in a folder that exists.

    Raises:
        ValueError: it ends in something else.
        FileNotFoundError: there is no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path must end in .gif or .html; got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists; there is no {path.parent}.")
    return path


# The page ----------------------------------------------------------------------------------------------------

PLAYER = """<div id="$name" class="ctrlgen-movie" style="display:inline-block;max-width:100%;font:14px sans-serif">
<img alt="$title" width="$width" height="$height" style="max-width:100%;height:auto;display:block">
<div style="display:flex;gap:.5em;align-items:center;padding:.3em 0">
<button type="button" aria-label="play or pause" style="width:4.5em">pause</button>
<input type="range" min="0" max="$last" value="0" aria-label="frame" style="flex:1;min-width:0">
</div>
<script>
(function () {
  var script = document.currentScript, box = script ? script.parentNode : document.getElementById("$name");
  var frames = [$frames], wait = $wait, at = 0, timer = null;
  var picture = box.querySelector("img"), button = box.querySelector("button"), slider = box.querySelector("input");
  function show(k) { at = k; picture.src = frames[k]; slider.value = k; }
  function stop() { clearTimeout(timer); timer = null; button.textContent = "play"; }
  function step() {
    show((at + 1) % frames.length);
    timer = setTimeout(step, at === frames.length - 1 ? Math.max(wait, 1000) : wait);
  }
  button.onclick = function () {
    if (timer) { stop(); } else { button.textContent = "pause"; timer = setTimeout(step, wait); }
  };
  slider.oninput = function () { stop(); show(Number(slider.value)); };
  show(0);
  if (window.matchMedia && window.matchMedia("(prefers-reduced-motion: reduce)").matches) { stop(); }
  else { timer = setTimeout(step, wait); }
})();
</script>
</div>"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>$title</title></head>
<body style="margin:1em">$player</body>
</html>
"""
