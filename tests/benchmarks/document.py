"""Write `docs/measured.md`, and the marked parts of other documents, from `results/*.json`.

    python tests/benchmarks/document.py            # after a benchmark has run
    python tests/benchmarks/document.py --check    # exit code 1 and what differs

`measured.md` beside this file holds the prose; `{{name}}` in it stands for what `findings.BLOCKS`
makes of the results, and so does what is between marks in other documents. So no number is typed:
`tests/test_measured.py` runs this, and finds digits in the prose.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from findings import BLOCKS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEMPLATE = HERE / "measured.md"
MEASURED = ROOT / "docs" / "measured.md"
MARKED = (ROOT / "README.md", ROOT / "docs" / "winner.md")  # documents with marked parts
MADE = "made by tests/benchmarks/document.py"
MARK = re.compile(rf"(<!-- ([^:>]+): {MADE} -->\n).*?(<!-- end -->)", re.S)


def measured() -> str:
    """Return `docs/measured.md`."""
    text = re.sub(r"\{\{(.+?)\}\}", lambda match: BLOCKS[match[1]](), TEMPLATE.read_text())
    return f"<!-- {MADE} from the files in tests/benchmarks/results: do not edit -->\n\n{text}"


def filled(text: str) -> str:
    """Return a document with its marked parts made anew."""
    return MARK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}", text)


def documents() -> dict[Path, str]:
    """Return what each document is to be."""
    return {MEASURED: measured(), **{file: filled(file.read_text()) for file in MARKED}}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the documents, or say what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    differs = False
    for file, text in documents().items():
        before = file.read_text()
        if text == before:
            continue
        differs = True
        if args.check:
            lines = before.splitlines(), text.splitlines()
            print("\n".join(difflib.unified_diff(*lines, str(file), "results", lineterm="")))
        else:
            file.write_text(text)
            print(f"written: {file}")
    return int(differs and args.check)


if __name__ == "__main__":
    sys.exit(main())
