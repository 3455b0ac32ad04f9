"""The only way to load an exported model: `model.pt2` is checked before torch reads it.

Unpickling is not the only way in which `torch.export.load` lets an archive run code: it evaluates
sizes and guards as Python, writes names into source code that it compiles, calls operators that
open files, imports modules that an input tree names, and loads compiled libraries. So torch never
reads the file itself: known and allowed content (the bytes of the weights and the checked graph) is
copied into a new archive in memory, anything else is refused, and example inputs, guards and source
metadata are left out.

MLflow serves registered models with a copy of this file, so it imports nothing of this project.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
WEIGHTS_CONFIG = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_CONFIG = f"{CONSTANTS}model_constants_config.json"
GRAPH, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
MARKS = ("archive_format", "archive_version", "byteorder", ".data/version")
MEMBERS = {WEIGHTS_CONFIG, CONSTANTS_CONFIG, GRAPH, INPUTS, *MARKS, ".data/serialization_id"}
PAYLOAD = re.compile(rf"(?:{WEIGHTS}weight_|{CONSTANTS}tensor_)\d{{1,6}}")
LARGEST_TEXT = 1 << 26  # bytes of a graph; a network of a thousand layers has a few million

NAME = re.compile(r"(?!__\w*__\Z)[A-Za-z_]\w*", re.ASCII)
PATH = re.compile(rf"{NAME.pattern}(?:\.(?!__\w*__(?:\.|\Z))\w+)*", re.ASCII)
PATHS = {"parameter_name", "buffer_name", "tensor_constant_name", "fqn"}
NUMBER_WORDS = {"Infinity", "-Infinity", "NaN"}
TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}

# Allowed calls in a graph: ATen operators that return tensors without side effects, and arithmetic.
OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z]\w*)\.(\w+)", re.ASCII)
FORBIDDEN = {"from_file", "set_", "to_here", "local_value"}
# Private operators check their arguments less; these occur in ordinary networks.
PRIVATE = {
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "_log_softmax",
    "_softmax",
    "_to_copy",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_weight_norm",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_unsafe_view",
    "_trilinear",
    "_safe_softmax",
    "_prelu_kernel",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "_fft_r2c",
    "_fft_c2r",
    "_fft_c2c",
}
VALUES = {"sym_size", "sym_numel", "sym_stride", "item", "is_nonzero"}
CHECKS = {
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
ARITHMETIC = {
    *(f"_operator.{name}" for name in "eq ne le ge lt gt neg pos mul add sub mod pow".split()),
    *(f"_operator.{name}" for name in "floordiv truediv and_ or_ not_ abs lshift rshift".split()),
    *(f"torch.sym_{name}" for name in "not int float ite max min sum sqrt".split()),
    "_operator.getitem",
    "math.trunc",
    "math.ceil",
    "math.floor",
    "torch._sym_sqrt",
    "torch.ops.higher_order.wrap_with_set_grad_enabled",
    "torch.ops.higher_order.wrap_with_autocast",
}
SIZES = set(
    "Symbol Integer Rational Float Add Mul Pow Max Min Mod Eq Ne Lt Le Gt Ge Equality Unequality "
    "StrictLessThan LessThan StrictGreaterThan GreaterThan And Or Not Abs FloorDiv PythonMod "
    "CleanDiv CeilDiv CeilToInt FloorToInt TruncToInt RoundToInt ModularIndexing Where ToFloat "
    "IntTrueDiv FloatTrueDiv Identity floor ceiling true false True False".split()
)
# Words in a size expression other than functions: symbols and their properties.
SYMBOL = re.compile(r"[a-z]{1,3}\d{1,9}|positive|negative|nonnegative|nonzero|integer|real|finite")
EXPRESSION = (
    ast.Expression,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.keyword,
    ast.UnaryOp,
    ast.USub,
    ast.Not,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
)
LITERAL = r"[a-z]{1,3}\d{1,9}|-?[\d.]{1,30}(?:e-?\d{1,3})?"  # a symbol's name, digits of a number
LARGEST_POWER = 8
# Allowed in pickled example inputs, which are scanned but never unpickled.
TENSOR_WORDS = {
    "torch._utils _rebuild_tensor_v2",
    "torch._tensor _rebuild_from_type_v2",
    "torch Tensor",
    "collections OrderedDict",
}
STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")


class UnsafeArchive(ValueError):
    """An archive that could run code, or that is not one of our exports; the message says why."""


def load_program(path: Path | str) -> ExportedProgram:
    """Return the program of an archive written by `study.best --export`.

    Raises:
        UnsafeArchive: It contains something that could run code, or that no export contains.
        Exception: It is corrupted; the type is up to torch.
    """
    content = io.BytesIO(checked(path))
    import torch

    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it would print a traceback for a corrupted file
    try:
        return torch.export.load(content)
    finally:
        logger.setLevel(level)


def checked(path: Path | str) -> bytes:
    """Return a new archive with the allowed content of another.

    Raises:
        UnsafeArchive: It has other content, too.
        BadZipFile: It is not an archive, or incomplete.
    """
    members = _members(Path(path))
    try:
        graph = _text(members, GRAPH)
        _check_graph(graph)
        texts = {GRAPH: graph}
        for name, folder in ((WEIGHTS_CONFIG, WEIGHTS), (CONSTANTS_CONFIG, CONSTANTS)):
            texts[name] = _text(members, name)
            _check_payloads(texts[name], folder, members)
    except UnsafeArchive:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UnsafeArchive(f"its graph is invalid ({type(error).__name__}: {error})") from None
    if members.get(INPUTS):
        _check_inputs(members[INPUTS])
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for name in MARKS:
            if name in members:
                archive.writestr(f"model/{name}", members[name])
        for name, value in texts.items():
            archive.writestr(f"model/{name}", json.dumps(value))
        archive.writestr(f"model/{INPUTS}", b"")
        for name in filter(PAYLOAD.fullmatch, members):
            archive.writestr(f"model/{name}", members[name])
    return new.getvalue()


def _members(path: Path) -> dict[str, bytes]:
    """Return the members of an archive by name, relative to its one folder."""
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        root = infos[0].filename.split("/")[0] if infos else ""
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise UnsafeArchive("it unpacks to more bytes than the file has")
        for info in infos:
            name = info.filename.removeprefix(f"{root}/")
            if info.orig_filename != info.filename or name == info.filename:
                raise UnsafeArchive(f"{info.orig_filename!r} is outside its one folder")
            if name not in MEMBERS and not PAYLOAD.fullmatch(name):
                raise UnsafeArchive(f"it contains {name!r}, which no export contains")
            if name in members:
                raise UnsafeArchive(f"it contains {name!r} twice")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UnsafeArchive(f"{name!r} is compressed or encrypted")
            members[name] = archive.read(info)
    return members


def _text(members: dict[str, bytes], name: str) -> Any:
    """Return the parsed JSON of a member."""
    if name not in members:
        raise UnsafeArchive(f"it has no {name!r}; another version of torch may have written it")
    if len(members[name]) > LARGEST_TEXT:
        raise UnsafeArchive(f"{name!r} has {len(members[name])} bytes")
    try:
        return json.loads(members[name])
    except ValueError as error:
        raise UnsafeArchive(f"{name!r} is not JSON ({error})") from None


def _check_payloads(config: Any, folder: str, members: dict[str, bytes]) -> None:
    """Refuse weights and constants that are not plain numbers."""
    for name, payload in config["config"].items():
        _match(PATH, name)
        member = f"{folder}{payload['path_name']}"
        if payload["use_pickle"] is not False:
            raise UnsafeArchive(f"{name!r} is pickled")
        if not PAYLOAD.fullmatch(member) or member not in members:
            raise UnsafeArchive(f"{name!r} is read from {payload['path_name']!r}")
        meta = payload["tensor_meta"]
        sizes = [size["as_int"] for size in meta["sizes"]]
        if not members[member] and math.prod(sizes):
            raise UnsafeArchive(f"{name!r} of size {sizes} has no bytes")
        _check(meta, "")


def _check_graph(program: dict[str, Any]) -> None:
    """Refuse a program whose strings could become code; remove what it does not need."""
    for guard in program.get("guards_code", []):
        _check_guard(guard)
    program["guards_code"] = []  # would be compiled; the network itself rejects invalid inputs
    module = program["graph_module"]
    module["metadata"] = {}
    if module.pop("treespec_namedtuple_fields", None):
        raise UnsafeArchive("its inputs or outputs are named tuples")
    program["torch_version"] = re.sub(r"[^\w.+<= -]", "", str(program.get("torch_version", "")))
    _check({key: value for key, value in program.items() if key != "torch_version"}, "")


def _check(value: Any, key: str) -> None:
    """Check a part of a graph recursively: `value`, found under `key`."""
    if isinstance(value, dict):
        if "metadata" in value and "target" in value:  # a node: its source location
            value["metadata"] = {}
        if value.get("custom_obj_values"):
            raise UnsafeArchive("it contains objects that are not tensors")
        names = key.endswith("_values") or key in ("range_constraints", "opset_version")
        for name, part in value.items():
            _match(NAME, name)
            if not names and name in ("as_custom_obj", "as_operator", "custom_obj", "token"):
                raise UnsafeArchive(f"its graph has {name!r}")
            _check(part, "" if names else name)
    elif isinstance(value, list):
        for part in value:
            _check(part, key)
    elif isinstance(value, str):
        _check_word(value, key)


def _check_word(word: str, key: str) -> None:
    """Refuse a string in a graph that is not allowed under its key."""
    if key == "target":
        _check_operator(word)
    elif key == "expr_str":
        _check_size(word)
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(word)[1])
    elif key in ("as_string", "as_strings"):  # always quoted by torch
        if not word.isprintable():
            raise UnsafeArchive(f"its graph has the text {word!r}")
    elif word and word not in NUMBER_WORDS:
        _match(PATH if key in PATHS else NAME, word)


def _match(pattern: re.Pattern[str], word: Any) -> None:
    if not isinstance(word, str) or not pattern.fullmatch(word):
        raise UnsafeArchive(f"its graph has the name {word!r}")


def _check_operator(target: str) -> None:
    """Refuse a function that does more than compute."""
    if target in ARITHMETIC:
        return
    found = OPERATOR.fullmatch(target) or re.fullmatch(r"torch\.ops\.aten\.(_\w+)\.(\w+)", target)
    name = found[1] if found else ""
    if name in VALUES | CHECKS:
        return
    if not found or name in FORBIDDEN or (name.startswith("_") and name not in PRIVATE):
        raise UnsafeArchive(f"its graph calls {target!r}")
    import torch

    operator = getattr(getattr(torch.ops.aten, name, None), found[2], None)
    returns = operator._schema.returns if isinstance(operator, torch._ops.OpOverload) else []
    if not returns or not all("Tensor" in str(part.type) for part in returns):
        raise UnsafeArchive(f"its graph calls {target!r}")


def _check_size(text: str) -> None:
    """Refuse a size expression (evaluated by sympy) with more than symbols and numbers."""
    for node in ast.walk(_parsed(text)):
        known = isinstance(node, EXPRESSION)
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in SIZES
            if known and node.func.id == "Pow":  # type: ignore[attr-defined]
                power = ast.unparse(node.args[1])
                digits = re.fullmatch(r"(?:Integer\()?-?(\d{1,3})\)?", power)
                known = digits is not None and int(digits[1]) <= LARGEST_POWER
        elif isinstance(node, ast.Name):
            known = node.id in SIZES or SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.keyword):
            known = node.arg is not None and SYMBOL.fullmatch(node.arg) is not None
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = re.fullmatch(LITERAL, node.value) is not None
        if not known:
            raise UnsafeArchive(f"its graph has the size {text!r}")


def _check_guard(text: Any) -> None:
    """Refuse a guard (compiled by torch) with more than comparisons of sizes."""
    allowed = (*EXPRESSION, ast.Subscript, ast.Attribute, ast.BoolOp, ast.And, ast.Or)
    for node in ast.walk(_parsed(text)):
        known = isinstance(node, allowed)
        if isinstance(node, ast.Name):
            known = node.id in {"L", *SIZES} or SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.Attribute):
            known = node.attr in ("size", "stride", "storage_offset", "shape", "ndim")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = NAME.fullmatch(node.value) is not None
        if not known:
            raise UnsafeArchive(f"its graph has the guard {text!r}")


def _parsed(text: Any) -> ast.Expression:
    try:
        expression: ast.Expression = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, TypeError, MemoryError):
        raise UnsafeArchive(f"its graph has the expression {text!r}") from None
    return expression


def _check_tree(tree: Any) -> None:
    """Refuse inputs and outputs other than tuples, lists and dicts with names."""
    if tree["type"] not in TREES:
        raise UnsafeArchive(f"its inputs or outputs are {tree['type']!r}")
    names = json.loads(tree["context"] or "null") or []
    if not isinstance(names, list):  # would import an enumeration's module
        raise UnsafeArchive(f"its inputs or outputs are {tree['context']!r}")
    for name in names:
        _match(NAME, name)
    for child in tree["children_spec"]:
        _check_tree(child)


def _check_inputs(content: bytes) -> None:
    """Refuse pickled example inputs with more than tensors, although they are left out anyway."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            (name,) = names
            if archive.getinfo(name).file_size > LARGEST_TEXT:
                raise UnsafeArchive(f"{INPUTS!r} is too large")
            words = [
                str(argument)
                for code, argument, _ in pickletools.genops(archive.read(name))
                if code.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
            ]
    except UnsafeArchive:
        raise
    except Exception as error:  # whatever the readers raise for a foreign archive
        raise UnsafeArchive(
            f"{INPUTS!r} is not a pickled tensor ({type(error).__name__})"
        ) from None
    for word in words:
        if word not in TENSOR_WORDS and not STORAGE.fullmatch(word):
            raise UnsafeArchive(f"{INPUTS!r} unpickles {word!r}")
