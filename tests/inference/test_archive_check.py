"""Crafted `model.pt2`: each would run code, and none does, at whichever door it comes in."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import study
from study.cli import run_command
from study.errors import InputError, TrialError
from study.export import export
from study.inference import archive_check
from study.inference.archive_check import UnsafeArchive, load_program
from study.inference.exported_model import ExportedModel, load_module
from study.predict import main as predict
from study.tracking import registered_model

CONFIG = "data/constants/model_constants_config.json"
WEIGHTS = "data/weights/model_weights_config.json"
INPUTS = "data/sample_inputs/model.pt"
GRAPH = "models/model.json"


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        self.constant = torch.ones(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.layer(images).flatten(2).mean(2) * self.constant).clamp(max=9)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export as `study.best --export` writes it, with example inputs as older ones have them."""
    folder = tmp_path_factory.mktemp("good")
    dynamic = {"images": {0: torch.export.Dim.DYNAMIC}}
    example = (torch.rand(2, 3, 8, 8),)
    torch.export.save(
        torch.export.export(Small().eval(), example, dynamic_shapes=dynamic), folder / "model.pt2"
    )
    meta = {"task": "other", "classes": ["a", "b", "c"]}
    meta["preprocessing"] = {"input": ["batch", 3, 8, 8]}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


Members = dict[str, bytes]


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def saved(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def edit(members: Members, name: str, change: Callable[[Any], None]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def nodes(graph: Any) -> list[Any]:
    return graph["graph_module"]["graph"]["nodes"]


def touch(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def sample_inputs(members: Members, marker: Path) -> None:
    members[INPUTS] = saved(((Evil(marker),), {}))


def bare_pickle_as_inputs(members: Members, marker: Path) -> None:
    members[INPUTS] = pickle.dumps(((Evil(marker),), {}))


def _pickled(members: Members, config: str, path: str, content: bytes) -> None:
    def change(value: Any) -> None:
        payload = next(iter(value["config"].values()))
        payload |= {"use_pickle": True, "path_name": path}

    edit(members, config, change)
    members[f"{config.rsplit('/', 1)[0]}/{path}"] = content


def pickled_weight(members: Members, marker: Path) -> None:
    _pickled(members, WEIGHTS, "weight_0", saved(Evil(marker)))


def pickled_constant(members: Members, marker: Path) -> None:
    _pickled(members, CONFIG, "tensor_0", saved(Evil(marker)))


def opaque_constant(members: Members, marker: Path) -> None:
    _pickled(members, CONFIG, "opaque_obj_0", pickle.dumps(Evil(marker)))


def custom_object(members: Members, marker: Path) -> None:
    _pickled(members, CONFIG, "custom_obj_0", pickle.dumps(Evil(marker)))


def legacy_weights(members: Members, marker: Path) -> None:
    members["data/weights/model.pt"] = saved({"layer.weight": Evil(marker)})


def legacy_constants(members: Members, marker: Path) -> None:
    members["data/constants/model.pt"] = saved({"constant": Evil(marker)})


def function_in_the_graph(members: Members, marker: Path) -> None:
    def change(graph: Any) -> None:
        call = {"name": "", "arg": {"as_string": f"touch '{marker}'"}, "kind": 1}
        empty = {
            "outputs": [{"as_none": True}],
            "metadata": {},
            "is_hop_single_tensor_return": None,
        }
        nodes(graph).append({"target": "torch.os.system", "inputs": [call], "name": "x", **empty})

    edit(members, GRAPH, change)


def operator_that_opens_a_file(members: Members, marker: Path) -> None:
    def change(graph: Any) -> None:
        arguments = {
            "filename": {"as_string": str(marker)},
            "shared": {"as_bool": True},
            "size": {"as_int": 4},
        }
        inputs = [{"name": n, "arg": a, "kind": 1} for n, a in arguments.items()]
        value = next(iter(graph["graph_module"]["graph"]["tensor_values"].values()))
        graph["graph_module"]["graph"]["tensor_values"]["opened"] = value
        nodes(graph).append(
            {
                "target": "torch.ops.aten.from_file.default",
                "inputs": inputs,
                "outputs": [{"as_tensor": {"name": "opened"}}],
                "metadata": {},
                "name": "opened",
                "is_hop_single_tensor_return": None,
            }
        )

    edit(members, GRAPH, change)


def expression_of_a_size(members: Members, marker: Path) -> None:
    def change(graph: Any) -> None:
        sizes = graph["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = f"{touch(marker)} or {sizes[0]['as_expr']['expr_str']}"

    edit(members, GRAPH, change)


def guard(members: Members, marker: Path) -> None:
    edit(members, GRAPH, lambda graph: graph.update(guards_code=[f"{touch(marker)} is None"]))


def name_in_generated_code(members: Members, marker: Path) -> None:
    def change(graph: Any) -> None:
        name = f"x=1), {touch(marker)}, dict(y"
        call = {"name": name, "arg": {"as_int": 1}, "kind": 2}
        empty = {"outputs": [], "metadata": {}, "is_hop_single_tensor_return": None}
        nodes(graph).append(
            {"target": "torch.sym_fresh_size", "inputs": [call], "name": "x"} | empty
        )

    edit(members, GRAPH, change)


def name_of_an_input(members: Members, marker: Path) -> None:
    text = members[GRAPH].decode()
    name = json.dumps(f"images={touch(marker)}")
    members[GRAPH] = re.sub(r'"images"', lambda _: name, text).encode()


def tree_that_imports(members: Members, marker: Path) -> None:
    def change(graph: Any) -> None:
        signature = graph["graph_module"]["module_call_graph"][0]["signature"]
        version, tree = json.loads(signature["in_spec"])
        (marker.parent / "antigravity_of_tests.py").write_text(touch(marker))
        fields = {"__enum__": True, "fqn": "antigravity_of_tests:A", "name": "b"}
        tree["children_spec"][1]["context"] = json.dumps({"a": fields})
        signature["in_spec"] = json.dumps([version, tree])

    edit(members, GRAPH, change)


def compiled_library(members: Members, marker: Path) -> None:
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


def extra_file(members: Members, marker: Path) -> None:
    members["extra/notes.txt"] = b"more"


def nested_archive(members: Members, marker: Path) -> None:
    members["data/constants/model.pt2"] = saved(Evil(marker))


def path_out_of_it(members: Members, marker: Path) -> None:
    members["../../data/weights/weight_0"] = b"0"


def weight_from_elsewhere(members: Members, marker: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["layer.bias"]["path_name"] = "../../../etc/passwd"

    edit(members, WEIGHTS, change)


def weight_of_no_bytes(members: Members, marker: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["layer.bias"]["tensor_meta"]["sizes"] = [{"as_int": 1 << 60}]

    edit(members, WEIGHTS, change)
    members["data/weights/weight_1"] = b""


def endless_power(members: Members, marker: Path) -> None:
    def change(graph: Any) -> None:
        sizes = graph["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = "Pow(Integer(9), Pow(Integer(9), Integer(9)))"

    edit(members, GRAPH, change)


def deep_nesting(members: Members, marker: Path) -> None:
    members[GRAPH] = b'{"graph_module":' + b"[" * 100_000


RUN = [  # what torch runs, shown below
    sample_inputs,
    bare_pickle_as_inputs,
    pickled_weight,
    pickled_constant,
    opaque_constant,
    legacy_weights,
    legacy_constants,
    operator_that_opens_a_file,
    expression_of_a_size,
    guard,
    name_of_an_input,
]
OTHER = [
    custom_object,
    name_in_generated_code,
    tree_that_imports,
    compiled_library,
    extra_file,
    nested_archive,
    path_out_of_it,
    weight_from_elsewhere,
    weight_of_no_bytes,
    endless_power,
    deep_nesting,
    function_in_the_graph,
]


def crafted(kinds: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("evil", kinds, indirect=True, ids=lambda kind: kind.__name__)


@pytest.fixture
def evil(request: pytest.FixtureRequest, good: Path, tmp_path: Path) -> Path:
    """The folder of an export with a crafted archive; `marker` lies beside it if code ran."""
    shutil.copytree(good, tmp_path / "evil")
    members = members_of(good / "model.pt2")
    request.param(members, tmp_path / "marker")
    write(tmp_path / "evil" / "model.pt2", members)
    return tmp_path / "evil"


@crafted(RUN)
def test_torch_itself_runs_the_code(evil: Path, tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    with contextlib.suppress(Exception):
        torch.export.load(evil / "model.pt2").module()(torch.rand(2, 3, 8, 8))
    assert (tmp_path / "marker").exists()


@crafted(RUN + OTHER)
def test_none_gets_through(evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsafeArchive):
        load_program(evil / "model.pt2").module()
    with pytest.raises(InputError, match="is refused: .*export again"):
        ExportedModel.open(evil).load()
    assert not (tmp_path / "marker").exists()


def test_an_archive_of_another_form_is_refused(good: Path, tmp_path: Path) -> None:
    """Where Python and torch might read different things, or more than the file holds."""
    file, members = tmp_path / "model.pt2", members_of(good / "model.pt2")

    def refused(why: str, error: type[Exception] = UnsafeArchive) -> None:
        with pytest.raises(error, match=why):
            load_program(file)

    write(file, members)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"model/{INPUTS}", b"")
    refused("twice")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_0", bytes(1 << 20))
    refused("unpacks to more")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/archive_format", np.random.default_rng(0).bytes(1 << 10))
    refused("compressed")
    write(file, members)
    content = bytearray(file.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    refused("encrypted")
    write(file, members)
    content = file.read_bytes()
    file.write_bytes(content.replace(GRAPH.encode(), b"models/nodel.json", 1))  # its local header
    refused("differ", zipfile.BadZipFile)
    with zipfile.ZipFile(file, "w") as archive:  # as torch 2.7 wrote them
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", members[GRAPH])
        archive.writestr("serialized_state_dict.pt", saved({}))
    refused("outside its one folder")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/archive_format", b"pt2")
    refused("no 'models/model.json'")
    file.write_bytes(b"no archive")
    refused("not a zip", zipfile.BadZipFile)


def test_a_good_one_gives_the_same_logits(good: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(5, 3, 8, 8)
    expected = torch.export.load(good / "model.pt2").module()(images)
    assert torch.equal(load_program(good / "model.pt2").module()(images), expected)


@pytest.mark.parametrize(
    "force", ["TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
)
def test_no_variable_of_torch_opens_the_door(
    force: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TORCH_FORCE_{force}", "1")
    assert load_module(good / "model.pt2")(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    members = members_of(good / "model.pt2")
    sample_inputs(members, tmp_path / "marker")
    write(tmp_path / "model.pt2", members)
    with pytest.raises(UnsafeArchive, match="unpickles"):
        load_program(tmp_path / "model.pt2")
    assert not (tmp_path / "marker").exists()


@crafted([sample_inputs, opaque_constant, guard])
def test_all_doors_are_this_one(
    evil: Path, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    command = [str(evil), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    assert run_command(lambda: predict(command)) == 2
    assert "is refused" in capsys.readouterr().err
    with pytest.raises(TrialError, match="could not be loaded again"):  # export's own check
        export.reload(evil / "model.pt2")
    with pytest.raises(InputError, match="is refused"):  # what --register logs comes from here
        load_module(evil / "model.pt2")
    # What MLflow serves is this file, with a copy of the check beside it and without `study`.
    shutil.copy(archive_check.__file__, tmp_path)
    file, name = registered_model.__file__, registered_model.__name__
    lines = f"""
import sys, types, runpy
sys.modules["study"] = None
model = runpy.run_path({file!r}, run_name={name!r})["Exported"]()
for file in sys.argv[1:]:
    model.load_context(types.SimpleNamespace(artifacts={{"model": file}}))
    print("loaded", file)
"""
    files = [str(good / "model.pt2"), str(evil / "model.pt2")]
    done = subprocess.run(
        [sys.executable, "-c", lines, *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"loaded {files[0]}\n", done.stderr
    assert "archive_check.UnsafeArchive" in done.stderr
    assert not (tmp_path / "marker").exists()


def test_nothing_else_loads_code() -> None:
    """No module but the one above reads an archive of torch, and none unpickles what came from
    outside: `runner/deaths.py` reads what Ray wrote in this session, and unpickles itself, too."""
    for path in sorted(Path(study.__file__).parent.rglob("*.py")):
        ours = path.match("runner/deaths.py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
                found = unsafe & {name.split(".")[-1] for name in names}
                assert found <= ({"pickle"} if ours else set()), path
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if call.endswith("export.load") or call.endswith("load_pt2"):
                assert path.name == "archive_check.py", path
            if call in ("torch.load", "torch.jit.load", "torch.hub.load"):
                assert call == "torch.load" and arguments["weights_only"] == "True", path
            if call in ("np.load", "numpy.load"):
                assert arguments.get("allow_pickle", "False") == "False", path
            assert call not in ("eval", "exec", "joblib.load"), path
            if call.startswith("yaml."):
                assert call != "yaml.unsafe_load" and "UnsafeLoader" not in arguments.values(), path
