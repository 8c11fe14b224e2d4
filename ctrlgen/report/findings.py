"""What an analysis found: claims with their evidence, figures and numbers, in a JSON file that is there at any time."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ctrlgen.certify.verdict import Verdict
from ctrlgen.estimate import Estimate
from ctrlgen.prove.claim import Status
from ctrlgen.report.provenance import machine, versions

STATUSES = ("running", "finished", "failed", "interrupted")
NOT_REACHED = "NOT REACHED"
POSITIVE = (Status.PROVED, Status.SAMPLED)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement, and what an analysis says of it.

    Args:
        key: its short name in the script.
        statement: in one sentence.
        holds: whether the evidence is for it; False as well where there is none.
        status: PROVED, SAMPLED, REFUTED or UNDECIDED, how much is known; NOT REACHED where the analysis ended before.
            A measurement that speaks against a claim is SAMPLED and does not hold.
        method: how it was decided.
        numbers: {what: value}, as they are shown.
        assumptions: of the verdicts that decided it.
    """

    key: str
    statement: str
    holds: bool
    status: str
    method: str
    numbers: dict[str, str]
    assumptions: tuple[str, ...] = ()


class Findings:
    """Collects what an analysis finds. Every addition is written to `<folder>/<name>.json` at once.

    Args:
        name: of the analysis.
        question: it asks, in one sentence.
        about: what is done.
        statements: {key: statement}, the claims that it has to answer.
        seed: of its randomness.
        quick: whether it is the short version.
        command: that runs it.
        folder: where the file and the figures go.
    """

    def __init__(
        self, name: str, *, question: str, about: str = "", statements: Mapping[str, str], seed: int = 0,
        quick: bool = False, command: str = "", folder: str | Path = "figures",
    ):  # fmt: skip
        self.name, self.question, self.about, self.statements = name, question, about, dict(statements)
        self.seed, self.quick, self.command, self.folder = seed, quick, command, Path(folder)
        self.claims: dict[str, Claim] = {}
        self.figures: list[dict[str, str]] = []
        self.answer, self.status, self.error, self.printed = "", "running", None, ""
        self.started, self._clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._versions, self._machine = versions(), machine()
        self._write()

    def claim(
        self, key: str, holds: Any, *, method: str, status: Status = Status.SAMPLED,
        numbers: Mapping[str, Any] | None = None, assumptions: tuple[str, ...] = (),
    ) -> bool:  # fmt: skip
        """Say whether a claim holds, and by which evidence.

        Args:
            key: one of the script's CLAIMS.
            holds: whether the evidence is for it.
            method: how it was decided, in a few words.
            status: SAMPLED for numbers; PROVED, REFUTED or UNDECIDED as of the verdict that decided it.
            numbers: {what: value}; floats are shown with four digits (all of them where the claim is PROVED, so that
                no bound is rounded to the wrong side), estimates with their errors.
            assumptions: what the claim takes for granted.

        Returns:
            holds, as a bool.

        Raises:
            KeyError: the script states no such claim.
            TypeError: holds is no bool.
            ValueError: it was answered before, or status and holds contradict one another.
        """
        if not isinstance(holds, (bool, np.bool_)):
            raise TypeError(f"holds must be a bool; got {holds!r} for claim {key!r}.")
        holds = bool(holds)
        if key not in self.statements:
            raise KeyError(f"{key!r} is none of the claims of {self.name}: {', '.join(self.statements)}.")
        if key in self.claims:
            raise ValueError(f"claim {key!r} was answered before; collect its parts and answer once.")
        if (status is Status.PROVED and not holds) or (status in (Status.REFUTED, Status.UNDECIDED) and holds):
            raise ValueError(f"claim {key!r} cannot be {status.name} and {'hold' if holds else 'not hold'}.")
        digits = "" if status is Status.PROVED else ".4g"
        self.claims[key] = Claim(
            key=key, statement=self.statements[key], holds=holds, status=status.name, method=method,
            numbers={str(k): _shown(v, digits) for k, v in (numbers or {}).items()}, assumptions=tuple(assumptions),
        )  # fmt: skip
        self._write()
        return holds

    def verdicts(
        self, key: str, verdicts: Verdict | list[Verdict], *, also: Any = True, method: str = "",
        numbers: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Answer a claim by verdicts: it is known as well as the weakest of them, and fails where one does.

        Args:
            key: one of the script's CLAIMS.
            verdicts: one or more.
            also: what was measured beside them and has to hold too. Where it does not, the claim is SAMPLED and fails.
            method: how; the methods of the verdicts when omitted.
            numbers: as in `claim`.

        Raises:
            KeyError, TypeError, ValueError: as `claim`; and when there is no verdict.

        What any of the verdicts assumes is told with the claim.
        """
        every = [verdicts] if isinstance(verdicts, Verdict) else list(verdicts)
        if not every:
            raise ValueError(f"claim {key!r} was given no verdict.")
        if not isinstance(also, (bool, np.bool_)):
            raise TypeError(f"also must be a bool; got {also!r} for claim {key!r}.")
        weakest = max((v.status for v in every), key=list(_ORDER).index)
        holds = weakest in POSITIVE and bool(also)
        status = Status.SAMPLED if weakest in POSITIVE and not also else weakest
        method = method or ", ".join(sorted({v.method for v in every if v.method}))
        assumptions = tuple(dict.fromkeys(a for v in every for a in v.assumptions))
        return self.claim(key, holds, method=method, status=status, numbers=numbers, assumptions=assumptions)

    def figure(self, figure: Any, caption: str, suffix: str = "", dpi: int = 200) -> Path:
        """Save a figure as `<name><suffix>.png` beside the findings.

        Args:
            figure: of matplotlib.
            caption: what is to be seen, in a sentence or two.
            suffix: of the file's name, when there are several.
            dpi: dots an inch.
        """
        path = self.folder / f"{self.name}{suffix}.png"
        figure.savefig(path, dpi=dpi)
        self.figures = [f for f in self.figures if f["file"] != path.name]
        self.figures.append({"file": path.name, "caption": " ".join(caption.split())})
        self._write()
        return path

    @property
    def holds(self) -> bool:
        """Every claim was answered, and holds."""
        return all(c.holds for c in self.all_claims())

    def all_claims(self) -> list[Claim]:
        """The claims in the order of the script; those that were not answered are NOT REACHED and do not hold."""
        return [
            self.claims.get(
                key,
                Claim(key=key, statement=text, holds=False, status=NOT_REACHED, method="", numbers={}),
            )
            for key, text in self.statements.items()
        ]

    def summary(self) -> str:
        """A line a claim."""
        return "\n".join(
            f"{'holds' if c.holds else 'FAILS'}  {c.status:9s} {c.statement} [{c.method}]" for c in self.all_claims()
        )

    def close(self, status: str, *, printed: str = "", error: str | None = None) -> None:
        """Write the end: "finished", "failed" (with the error) or "interrupted", and what was printed."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}; got {status!r}.")
        self.status, self.printed, self.error = status, printed, error
        self._write()

    def _write(self) -> None:
        content = {
            "name": self.name, "question": self.question, "about": self.about, "seed": self.seed, "quick": self.quick,
            "command": self.command, "started": self.started, "seconds": round(time.perf_counter() - self._clock, 1),
            "versions": self._versions, "machine": self._machine, "status": self.status, "error": self.error,
            "answer": self.answer, "printed": self.printed, "claims": [asdict(c) for c in self.all_claims()],
            "figures": self.figures,
        }  # fmt: skip
        path = self.folder / f"{self.name}.json"
        draft = path.with_suffix(".json.part")
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, path)


_ORDER = {Status.PROVED: 0, Status.SAMPLED: 1, Status.UNDECIDED: 2, Status.REFUTED: 3}


def _shown(value: Any, digits: str = ".4g") -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Status):
        return value.name
    if isinstance(value, Estimate):
        return str(value)
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", "\u202f")
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return "not known"
        return f"{float(value):{digits}}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_shown(v, digits) for v in value)
    raise TypeError(f"a number of a claim must be a number, an Estimate, a text or a list of these; got {type(value)}.")
