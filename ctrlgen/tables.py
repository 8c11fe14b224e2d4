"""Tables of numbers in files: a user's CSV, .npy or .npz, read with errors that say which line and which column.

Nothing is guessed silently: a cell that is no number, a missing value, a line of another length are errors.
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
SUFFIXES = (*TEXT_SUFFIXES, ".npy", ".npz")
DELIMITERS = {"\t": "tab", ";": "semicolon", ",": "comma", " ": "space"}
_SHOWN = 5  # offending lines or columns that an error names


@dataclass(frozen=True)
class Table:
    """A table of finite numbers.

    Args:
        values: (n, d) float64.
        columns: d names from the header, or None.
    """

    values: np.ndarray
    columns: tuple[str, ...] | None

    def plot(self, ax: Any = None, **view: Any) -> Any:
        """Draw two columns as points, or one as a histogram: see `ctrlgen.plot.table` for `plane`."""
        from ctrlgen import plot

        return plot.table(self, ax, **view)


def read_table(path: str | os.PathLike, array: str | None = None) -> Table:
    """Read a table: .csv, .tsv, .txt or .dat (with a header or without; comma, semicolon, tab or space), .npy, .npz.

    Args:
        path: of the file.
        array: which array of an .npz; needed when it holds several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, empty, ragged, not numeric or not finite: the message names the
            lines (counted from 1, as editors do), rows of an array (counted from 0), or columns.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass a table ({', '.join(SUFFIXES)}).")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must be one of {', '.join(SUFFIXES)}; got {suffix or 'no suffix'}. Export it as CSV.")
    if array is not None and suffix != ".npz":
        raise ValueError(f"array is for .npz files, which hold several; {path} is a {suffix} file.")
    return _read_text(path) if suffix in TEXT_SUFFIXES else Table(_read_arrays(path, array), None)


def write_table(path: str | os.PathLike, values: np.ndarray, columns: Sequence[str] | None = None) -> Path:
    """Write (n, d) numbers as CSV with a header (x1, ..., xd when there are no names), .npy, or .npz ("samples").

    Raises:
        ValueError: another suffix, or the columns do not fit.
    """
    path, values = Path(path), np.asarray(values)
    if columns is None:
        columns = [f"x{i + 1}" for i in range(values.shape[1])]
    elif len(columns) != values.shape[1]:
        raise ValueError(f"columns must be {values.shape[1]} names; got {len(columns)}.")
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npy":
        np.save(path, values)
    elif path.suffix.lower() == ".npz":
        np.savez_compressed(path, samples=values)
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow(columns)
            np.savetxt(stream, values, fmt="%.9g", delimiter=",")  # nine digits: a float32 reads back as it was
    return path


def check_output(path: str | os.PathLike) -> None:
    """Raise a ValueError if `write_table` cannot write this kind of file."""
    if Path(path).suffix.lower() not in (".csv", ".npy", ".npz"):
        raise ValueError(f"out must end in .csv, .npy or .npz; got {str(path)!r}.")


# Arrays ---------------------------------------------------------------------------------------------------


def _read_arrays(path: Path, name: str | None) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if path.suffix.lower() == ".npz":
                if not hasattr(loaded, "files"):
                    raise ValueError("it is a single array, not an archive. Name it .npy")
                loaded = loaded[_which(path, loaded.files, name)]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        hint = " It holds Python objects, which are not read: save numbers." if "pickle" in str(error).lower() else ""
        raise ValueError(f"{path} cannot be read as {path.suffix}: {str(error).splitlines()[0]}.{hint}") from None
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "biuf":
        kind = getattr(loaded, "dtype", type(loaded).__name__)
        raise ValueError(f"{path} must hold real numbers; got {kind}. Save a plain (n, d) array of floats.")
    if loaded.ndim == 1:
        loaded = loaded[:, None]
    if loaded.ndim != 2 or 0 in loaded.shape:
        raise ValueError(f"{path} must hold an array of shape (n, d), one row a sample; got shape {loaded.shape}.")
    values = loaded.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ValueError(f"{path} must be finite; {_count(len(bad), 'row')} not: {_some(bad, 'row')} (counted from 0).")
    return values


def _which(path: Path, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        asked = "holds several arrays" if name is None else f"has no array {name!r}"
        raise ValueError(f"{path} {asked}; it has {sorted(names)}. Say which one with --array (array=).")
    return name


# Text -----------------------------------------------------------------------------------------------------


def _read_text(path: Path) -> Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text; byte {error.start} is not. Save it as CSV UTF-8.") from None
    rows = _split(text)
    if not rows:
        raise ValueError(f"{path} is empty: there is no line with numbers.")
    columns = None
    if _is_header(rows):
        columns = tuple(cell or f"column {j + 1}" for j, cell in enumerate(rows[0][1]))
        rows = rows[1:]
        if not rows:
            raise ValueError(f"{path} has a header and no rows below it.")
    width = len(columns) if columns is not None else len(rows[0][1])
    ragged = [(line, len(cells)) for line, cells in rows if len(cells) != width]
    if ragged:
        some = ", ".join(f"line {line} has {count}" for line, count in ragged[:_SHOWN])
        more = f" and {len(ragged) - _SHOWN} more lines" if len(ragged) > _SHOWN else ""
        raise ValueError(f"{path} must have {width} cells in every line, as its first; {some}{more}.")
    lines = np.array([line for line, _ in rows])
    try:
        values = np.array([cells for _, cells in rows], dtype=np.float64)
    except ValueError:
        values = _by_column(path, rows, columns, width)
    bad = lines[~np.isfinite(values).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"{path} must be finite; {_count(len(bad), 'row')} not: {_some(bad, 'line')}. "
            "Drop them, or fill in what is missing."
        )
    return Table(values, columns)


def _split(text: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of the lines that are neither blank nor comments; lines are counted from 1."""
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"]
    delimiter = _delimiter([line for _, line in islice(lines, 20)])
    if delimiter == " ":
        return [(i, line.split()) for i, line in lines]
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, skipinitialspace=True)
    return [(lines[reader.line_num - 1][0], [cell.strip() for cell in cells]) for cells in reader]


def _delimiter(lines: list[str]) -> str:
    """What cuts every one of these lines into one number of cells, above one; else what cuts most of them."""
    best, most = ",", (0, 0)
    for mark in DELIMITERS:
        counts = [len(line.split()) if mark == " " else len(next(csv.reader([line], delimiter=mark))) for line in lines]
        common = max(set(counts), key=counts.count, default=1)
        score = (counts.count(common), 1) if common > 1 else (0, 0)
        if score > most:
            best, most = mark, score
    return best


def _is_header(rows: list[tuple[int, list[str]]]) -> bool:
    """The first row names the columns: it has no number, or has words above numbers."""
    first = rows[0][1]
    words = [j for j, cell in enumerate(first) if cell and not _is_number(cell)]
    if not words or len(words) == sum(map(bool, first)):
        return bool(words)
    below = rows[1][1] if len(rows) > 1 else []
    return any(j < len(below) and _is_number(below[j]) for j in words)


def _by_column(path: Path, rows: list, columns: tuple[str, ...] | None, width: int) -> np.ndarray:
    """Column by column, so that what is missing becomes nan and what is no number is named."""
    out, wrong, commas = np.empty((len(rows), width)), [], False
    for j in range(width):
        cells = [cells[j] for _, cells in rows]
        for i, cell in enumerate(cells):
            if not cell or _is_number(cell):
                out[i, j] = float(cell) if cell else np.nan
                continue
            name = f"{columns[j]!r} (column {j + 1})" if columns is not None else f"column {j + 1}"
            wrong.append(f"{name} has {cell[:40]!r} in line {rows[i][0]}")
            commas |= _is_number(cell.replace(",", "."))
            break
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more columns" if len(wrong) > _SHOWN else ""
        hint = "Write decimal points, not commas." if commas else "Drop these columns, or encode them as numbers."
        raise ValueError(f"{path} must be numeric; {'; '.join(wrong[:_SHOWN])}{more}. {hint}")
    return out


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _count(count: int, thing: str) -> str:
    return f"1 {thing} is" if count == 1 else f"{count} {thing}s are"


def _some(numbers: np.ndarray, thing: str) -> str:
    more = ", ..." if len(numbers) > _SHOWN else ""
    return f"{thing}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_SHOWN]))}{more}"
