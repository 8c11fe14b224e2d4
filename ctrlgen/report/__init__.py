"""Analyses and the report that is made of them: questions, claims with their evidence, figures, one page.

`script` runs an analysis of `analysis/`, which collects its `Claim`s in `Findings`; `run_report` runs all of them and
writes one self-contained HTML page.
"""

from ctrlgen.report.findings import Claim, Findings
from ctrlgen.report.run import Report, find_scripts, run_report
from ctrlgen.report.script import Analysis, read_script, script

__all__ = ["Analysis", "Claim", "Findings", "Report", "find_scripts", "read_script", "run_report", "script"]
