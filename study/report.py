"""Write a study as one HTML page that needs no server and no network.

python -m study.report              # the study last run, to studies/NAME/report.html
python -m study.report facade --out facade.html --price-per-hour 1.2
"""

from __future__ import annotations

import sys
from pathlib import Path

from study.cli import add_studies_flag, add_study_name, check_price, command_parser, run_command
from study.errors import InputError
from study.records.manifest import find_study
from study.records.study_record import REPORT_FILE, StudyRecord
from study.reporting import report_page
from study.storage.paths import as_path


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.report`."""
    parser = command_parser("report")
    add = parser.add_argument
    add_study_name(parser)
    add("--out", metavar="FILE", help=f"file to write (default: STUDY/{REPORT_FILE})")
    add(
        "--price-per-hour",
        metavar="USD",
        type=float,
        help="price of all machines of the study in US dollars per hour, to show what trials cost",
    )
    add_studies_flag(parser)
    args = parser.parse_args(argv)
    price = args.price_per_hour
    check_price(price)
    record = StudyRecord.read(find_study(as_path(args.studies_dir), args.study))
    for text in record.repaired:
        print(text, file=sys.stderr)
    path = Path(args.out) if args.out else record.path / REPORT_FILE
    if isinstance(path, Path) and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--out {path}: name a file in a folder that exists.")
    report_page.write(record, path, price)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
