"""Every analysis in a process of its own, and one report of what came of them.

A process that fails, is killed or is interrupted takes nothing of the others with it, and leaves what it had found.
The page is written anew whenever an analysis ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from ctrlgen.report.findings import NOT_REACHED
from ctrlgen.report.page import write_page
from ctrlgen.report.script import Analysis, read_script, terminable
from ctrlgen.threads import cores

GRACE = 20.0  # an interrupted analysis has to save what it has [s]
CHECKOUT = Path(__file__).resolve().parents[2] / "analysis"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the analyses found.

    Args:
        path: of the page.
        results: one an analysis, as its JSON file says, in the order of the page: failing ones first.
        missing: names of the analyses of which there is no result.
        interrupted: not all that were asked for were run to the end.
        seconds: wall time of this run.
    """

    path: Path
    results: list[dict[str, Any]]
    missing: tuple[str, ...]
    interrupted: bool
    seconds: float

    @property
    def claims(self) -> list[dict[str, Any]]:
        """All claims, each with the "name" of its analysis."""
        return [{"name": r["name"], **claim} for r in self.results for claim in r["claims"]]

    @property
    def failing(self) -> list[dict[str, Any]]:
        """The claims that do not hold, or were not reached."""
        return [c for c in self.claims if not c["holds"]]

    @property
    def holds(self) -> bool:
        """Every analysis that there is a result of, and that was asked for, came to its end and every claim holds."""
        ended = not self.interrupted and all(r["status"] == "finished" for r in self.results)
        return bool(self.results) and ended and not self.failing

    def __str__(self) -> str:
        lines = []
        for result in self.results:
            state = "" if result["status"] == "finished" else f" ({result['status']})"
            lines.append(f"{result['name']}{state}, {result['seconds']:.0f} s")
            lines += [
                f"  {'holds' if c['holds'] else 'FAILS'}  {c['status']:11s} {c['statement']}" for c in result["claims"]
            ]
        lines += [f"not run: {', '.join(self.missing)}"] if self.missing else []
        good = len(self.claims) - len(self.failing)
        lines.append(f"{good} of {len(self.claims)} claims hold [{self.seconds:.0f} s]; the report: {self.path}")
        return "\n".join(lines)


def find_scripts(folder: str | Path | None = None) -> list[Analysis]:
    """The analyses of a folder, by name; those that come with the package when it is omitted.

    Raises:
        FileNotFoundError: there is no such folder, or no analysis in it.
        ValueError: a script states claims but not its question.
    """
    folder = _shipped() if folder is None else Path(folder)
    scripts = [p for p in sorted(folder.glob("*.py")) if "\nCLAIMS = " in p.read_text(encoding="utf-8")]
    if not scripts:
        raise FileNotFoundError(f"folder must hold analyses, scripts with a table CLAIMS; there is none in {folder}.")
    return [read_script(p) for p in scripts]


def _shipped() -> Path:
    if CHECKOUT.is_dir() and (CHECKOUT.parent / "pyproject.toml").is_file():
        return CHECKOUT
    return Path(str(import_module("ctrlgen._analysis").__file__)).parent  # in an installed package they are inside it


def run_report(
    out: str | Path = "report",
    *,
    quick: bool = False,
    seed: int = 0,
    only: Iterable[str] = (),
    jobs: int | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
    say: Callable[[str], Any] | None = None,
) -> Report:
    """Run every analysis and write one self-contained HTML page, `<out>/report.html`.

    Beside it are `<name>.json`, the figures and `<name>.log` (what went to stderr) of every analysis. Results that a
    folder holds already are kept in the page unless their analysis is run again.

    Args:
        out: the folder; made if needed.
        quick: smaller numbers of everything, for a few minutes in all.
        seed: of every analysis.
        only: names of the analyses to run; all when empty.
        jobs: how many run side by side; one for two cores when omitted, two at most (each uses several threads).
            Analyses that measure time run alone, at the end.
        folder: of the scripts; those that come with the package when omitted.
        progress: show a progress bar.
        say: called with a line whenever an analysis ends.

    Raises:
        ValueError: there is no analysis of a name in `only`, or jobs is not positive.
        FileNotFoundError: there is no analysis in `folder`.

    An interruption (KeyboardInterrupt, or SIGTERM) ends the analyses that are running, writes the page of what there
    is, and is told by `Report.interrupted`.
    """
    began, out, every = time.perf_counter(), Path(out).resolve(), find_scripts(folder)
    names = list(only) or [a.name for a in every]
    unknown = sorted(set(names) - {a.name for a in every})
    if unknown:
        raise ValueError(
            f"only must name analyses; there is no {unknown[0]!r} among {', '.join(a.name for a in every)}."
        )
    jobs = min(2, cores()) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}.")
    out.mkdir(parents=True, exist_ok=True)
    chosen = [a for a in every if a.name in names]
    run = _Run(out, quick, seed, max(1, cores() // jobs))
    page = out / "report.html"
    interrupted = False
    with _bar(len(chosen), progress) as bar, ThreadPoolExecutor(jobs) as pool, terminable():
        try:
            for together, width in ((False, jobs), (True, 1)):
                waiting = [a for a in chosen if a.alone is together]
                running: dict[Any, Analysis] = {}
                while waiting or running:
                    while waiting and len(running) < width:
                        analysis = waiting.pop(0)
                        running[pool.submit(run.one, analysis)] = analysis
                    bar.set_postfix_str(", ".join(a.name for a in running.values()))
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        result = done.result()
                        del running[done]
                        bar.update()
                        if say is not None:
                            say(_line(result))
                        _write(page, every)
        except KeyboardInterrupt:
            interrupted = True
            run.stop()
    results, missing = _write(page, every)
    return Report(
        path=page, results=results, missing=missing, interrupted=interrupted, seconds=time.perf_counter() - began
    )


class _Run:
    """Processes, and how to end them."""

    def __init__(self, out: Path, quick: bool, seed: int, threads: int):
        self.out, self.quick, self.seed = out, quick, seed
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopped, self.lock = False, Lock()  # so that none is started that would not be stopped
        # a core for each thread that works: NumPy's are told how many there are for this process
        self.environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}

    def one(self, analysis: Analysis) -> dict[str, Any]:
        """Run one analysis to its end, whatever that is, and read what it left."""
        name, clock = analysis.name, time.perf_counter()
        drawn = [self.out / f["file"] for f in (_read(self.out / f"{name}.json") or {}).get("figures", [])]
        for old in (self.out / f"{name}.json", self.out / f"{name}.log", *drawn):
            old.unlink(missing_ok=True)
        command = [sys.executable, str(analysis.path), "--seed", str(self.seed), "--out", str(self.out)]
        command += ["--quick"] if self.quick else []
        with (self.out / f"{name}.log").open("wb") as log:
            with self.lock:
                if self.stopped:
                    return _broken(self.out, analysis, "interrupted", "it was not started", 0.0)
                process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=log, env=self.environment, cwd=self.out,
                    start_new_session=True,
                )  # fmt: skip
                self.processes.add(process)
            code = process.wait()
            self.processes.discard(process)
        stored = _read(self.out / f"{name}.json")
        if stored is not None and stored["status"] != "running":
            return stored
        tail = (self.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]
        cause = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        return _broken(self.out, analysis, "interrupted" if self.stopped else "failed", f"{cause}\n{tail}".strip(),
                       time.perf_counter() - clock)  # fmt: skip

    def stop(self) -> None:
        """Interrupt what runs; what does not end in time is killed."""
        with self.lock:
            self.stopped = True
        deadline = time.monotonic() + GRACE
        for process in list(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in list(self.processes):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _broken(out: Path, analysis: Analysis, status: str, error: str, seconds: float) -> dict[str, Any]:
    """The file of an analysis that could not write its own end: what it had, and what is known of the cause."""
    path = out / f"{analysis.name}.json"
    blank = {
        "name": analysis.name, "question": analysis.question, "about": analysis.about, "seed": None, "quick": None,
        "command": f"python analysis/{analysis.path.name}", "started": "", "versions": {}, "machine": {}, "answer": "",
        "printed": "", "figures": [],
        "claims": [
            {"key": k, "statement": s, "holds": False, "status": NOT_REACHED, "method": "", "numbers": {}}
            for k, s in analysis.claims.items()
        ],
    }  # fmt: skip
    result = (_read(path) or blank) | {"status": status, "error": error, "seconds": round(seconds, 1)}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _write(page: Path, every: list[Analysis]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Write the page of what its folder holds of the analyses there are, and the names of those it does not.

    One that is running is not told of yet.
    """
    found = {a.name: _read(page.parent / f"{a.name}.json") for a in every}
    results = ordered([r for r in found.values() if r is not None and r["status"] != "running"])
    missing = tuple(sorted(found.keys() - {r["name"] for r in results}))
    write_page(page, results, missing)
    return results, missing


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def ordered(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failing analyses first, in each part as they came."""
    return sorted(results, key=lambda r: r["status"] == "finished" and all(c["holds"] for c in r["claims"]))


def _line(result: dict[str, Any]) -> str:
    good = sum(c["holds"] for c in result["claims"])
    held = f"{good} of {len(result['claims'])} claims hold"
    return f"{result['name']}: {result['status']}, {held} [{result['seconds']:.0f} s]"


def _bar(total: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, disable=not shown, unit="analysis", desc="report")
