"""Apply an exported model to your own images.

    python -m study.predict export/fashion shoe.jpg shirt.png
    python -m study.predict export/facade photos/ --out predictions

Images may have any size, mode and orientation, in the formats of `study.datasets.photo.FORMATS`; a
folder stands for the images directly in it. Segmentation writes, at each image's own size,
`NAME.classes.png` (a palette PNG of class indices) and `NAME.overlay.jpg`, and one `legend.png`.
Classification prints the three likeliest classes and writes `NAME.input.png`, the network's input.
`predictions.json` contains all results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from study.cli import command_parser, run_command
from study.formatting import SAMPLE_DATA


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.predict`."""
    parser = command_parser("predict")
    add = parser.add_argument
    add("export", metavar="EXPORT", type=Path, help="folder written by study best --export")
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image file, or folder: all images directly in it",
    )
    add(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("predictions"),
        help="folder for the results (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    from study.inference.exported_model import ExportedModel
    from study.inference.predictions import Results, describe, expand, predict_each

    model = ExportedModel.open(args.export)
    results = Results(args.out)
    files, failed, unused = expand(args.images)
    network = model.load() if files else None
    if model.meta.get("dataset", "real") != "real":
        print(f"this model was trained on {SAMPLE_DATA}", file=sys.stderr)
    for skipped in failed:
        _say_skipped(skipped)
    for entry in predict_each(model, network, files, results) if network is not None else ():
        if "reason" in entry:
            failed.append(entry)
            _say_skipped(entry)
        elif not args.json:
            print(describe(entry), flush=True)
    results.save(model)
    if args.json:
        meta = {key: model.meta.get(key) for key in ("task", "study", "trial", "dataset")}
        content = {**meta, "out": str(args.out), "images": results.new, "failed": failed}
        content |= {"unused": unused.names}
        print(json.dumps(content, indent=1))
    if unused:
        print(unused, file=sys.stderr)
    if failed:
        print(f"{len(failed)} skipped, {len(results.new)} done", file=sys.stderr)
    return 1 if failed else 0


def _say_skipped(skipped: dict[str, str]) -> None:
    print(f"skipped: {skipped['file']}: {skipped['reason']}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
