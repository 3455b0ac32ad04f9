"""Downloads and archives: whole or not at all, and never outside their folder."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from study.errors import InputError


def download(url: str, path: Path, sha256_prefix: str | None = None) -> Path:
    """Download `url` to `path` with a progress bar; a download cut short leaves no file.

    Args:
        url: Where it is.
        path: Where it goes; an existing file is kept.
        sha256_prefix: First digits of the SHA-256, if known.

    Raises:
        InputError: No network, or other content than expected.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with tqdm(desc=path.name, unit="B", unit_scale=True, file=sys.stderr) as bar:

            def show(num_blocks: int, block_size: int, total: int) -> None:
                bar.total = total if total > 0 else None
                bar.update(num_blocks * block_size - bar.n)

            urllib.request.urlretrieve(url, draft, show)
        found = hashlib.sha256(draft.read_bytes()).hexdigest()
        if sha256_prefix is not None and not found.startswith(sha256_prefix):
            raise InputError(f"{url} is not the file that was expected (its SHA-256 is {found}).")
        if path.suffix == ".zip" and not zipfile.is_zipfile(draft):
            raise InputError(f"{url} gave no zip archive; is there a log-in page in between?")
        os.replace(draft, path)
    except (OSError, http.client.HTTPException) as error:  # no network, no such file, or cut short
        raise InputError(
            f"cannot download {url} ({error}). Fetch it on a machine with a network and import it "
            "with --from PATH, or try the drawn data with --dataset sample."
        ) from None
    finally:
        draft.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give a folder as it is, or a zip unpacked into a folder that is deleted afterwards.

    Raises:
        InputError: Neither a folder nor a sound zip, or a member would leave the folder.
    """
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise InputError(f"there is no {path}.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is neither a folder nor a zip archive.")
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        root = Path(scratch).resolve()
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    target = (root / member.filename).resolve()
                    if not target.is_relative_to(root):
                        raise InputError(
                            f"{path} wants to write outside its folder ({member.filename}); "
                            "refused, nothing was unpacked."
                        )
                archive.extractall(root)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path} is damaged ({error}); get it again.") from None
        yield root
