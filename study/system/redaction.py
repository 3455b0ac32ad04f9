"""Masking of passwords and keys, and escaping of terminal control characters.

All output passes through `cleaned`; command lines and errors pass through `redacted` before they
are stored. The password of a tracking URI is moved to the environment variable its client reads, so
that no library can repeat it in a message.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

MASK = "***"
ADVICE = (
    "the password in the tracking URI is used but not stored; better leave it out and set "
    "{variables}"
)
DATABASE = "PGPASSWORD (or write ~/.pgpass)"
SERVER = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"

SECRET = r"password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key"
RULES = [
    # scheme://user:PASSWORD@host, up to the last @: a password may contain @ and slashes. A number
    # before a slash is a port.
    (r"(://[^\s/:@'\"?#]*:)(?!\d{1,5}(?:[/?#]|$))[^\s'\"<>]{1,400}@", rf"\1{MASK}@"),
    (r"(https?://)(?!\*)[^\s/:@'\"?#]{1,400}@", rf"\1{MASK}@"),  # http://TOKEN@host
    (rf"(?i)([?&;][\w.-]*(?:{SECRET})[\w.-]*=)[^&\s'\"#;]+", rf"\1{MASK}"),
    (r"\b([A-Z0-9_]*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_KEY|ACCESS_KEY)=)[^\s'\"]+", rf"\1{MASK}"),
    (r"(?i)\b((?:password|passwd|pwd)=)(?!\*)[^\s'\",;)&]+", rf"\1{MASK}"),
    (
        rf"(?i)(['\"][\w-]*(?:{SECRET})['\"]\s*:\s*)(?:'[^'\n]+'|\"[^\"\n]+\")",
        rf"\1'{MASK}'",
    ),
    (r"(?i)(authorization\W{1,6}(?:basic|bearer)\s+)[^\s'\"]+", rf"\1{MASK}"),
]
PATTERNS = [(re.compile(pattern), new) for pattern, new in RULES]
# Without one of these no rule matches, so long texts are passed on quickly.
SIGN = re.compile(rf"://|(?i:{SECRET}|authorization)")


# Colours are removed; other control characters, and those that change the writing direction, are
# escaped. A line that begins with a carriage return is a progress bar.
COLORS = re.compile(r"\x1b\[[\d;]*m")
CONTROLS = re.compile(
    r"(?<!^)\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def redacted(text: str) -> str:
    """Return a text with `***` in place of each password, token and key."""
    if SIGN.search(text):
        for pattern, new in PATTERNS:
            text = pattern.sub(new, text)
    return text


def cleaned(text: str) -> str:
    """Return a text that is safe to show on a terminal, whatever file names it contains."""
    text = COLORS.sub("", text)
    return redacted(CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text))


def command_line(module: str, words: Sequence[str]) -> str:
    """Return the command line as typed, with secrets masked: `python -m study.tune ...`."""
    return f"python -m study.{module} " + shlex.join(map(masked, words))


def masked(word: str) -> str:
    """Return one word of a command line with `***` in place of a password in it."""
    whole = re.compile(r"(?s)(://[^/:@?#]*:)(?!\d{1,5}(?:[/?#]|$)).*@")  # also blanks, quotes
    return redacted(whole.sub(rf"\1{MASK}@", word))


def without_password(uri: str) -> str:
    """Return a tracking URI without its password, which is moved to the environment.

    A server's password goes to MLflow's variables, and PostgreSQL's to that of its client library.
    Other databases keep it in the URI, because their drivers read no variable.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    place, at, host = parts.netloc.rpartition("@")
    user, colon, password = place.partition(":")
    if not at or not colon:
        return uri
    scheme, _, driver = parts.scheme.partition("+")
    if scheme in ("http", "https"):
        kept, variables, advice = host, {"MLFLOW_TRACKING_USERNAME": unquote(user)}, SERVER
        name = "MLFLOW_TRACKING_PASSWORD"
    elif scheme == "postgresql" and driver in ("", "psycopg", "psycopg2"):
        kept, variables, advice, name = f"{user}@{host}", {}, DATABASE, "PGPASSWORD"
    else:
        return uri
    if password != MASK:  # a masked one, from a stored command
        os.environ.update({**variables, name: unquote(password)})
        print(ADVICE.format(variables=advice), file=sys.stderr)
    return parts._replace(netloc=kept).geturl()


def mask_output() -> None:
    """Pass everything this process writes to its standard streams through `cleaned`."""
    os.environ.setdefault("PYTHON_COLORS", "0")
    for stream in (sys.stdout, sys.stderr):
        if stream is None or hasattr(stream, "written_unmasked"):
            continue
        write = stream.write

        def masked(text: str, write=write) -> int:  # type: ignore[no-untyped-def]
            return int(write(cleaned(text)) or 0)

        for name, value in (("written_unmasked", write), ("write", masked)):
            setattr(stream, name, value)
