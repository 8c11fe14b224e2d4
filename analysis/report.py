"""Run every analysis and write one page of what was found: `ctrlgen report`, from a checkout.

Run: python analysis/report.py [--quick] [--out report] [--only NAME]
"""

import sys

from ctrlgen.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
