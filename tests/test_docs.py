"""What the README and the pages of docs/ show runs as it stands there, and what they point at exists.

The Python blocks of a page run one after the other in one namespace and in a directory of their own, where `runs/a`
holds tickets and a pooled network. A block that stands behind `<!-- needs NAME -->` is skipped where the module NAME is
not installed, or where NAME is `gpu` and there is none.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer

import bench.table
import lpk
from lpk import presets
from lpk.cli import app
from lpk.tickets import files
from lpk.tickets.tickets import Tickets
from tests.conftest import make_images, make_network

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
TOP = sorted(ROOT.glob("*.md"))

FENCE = re.compile(r"^(?:<!-- needs (\S+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "shell", "console")


class Block(NamedTuple):
    """A fenced block: what it needs beside lpk, its language, its text, and the line that it begins at."""

    needs: str
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1] or "", m[2], m[3], text.count("\n", 0, m.start(3))) for m in FENCE.finditer(text)]


def python_pages() -> list[tuple[Path, str]]:
    """Each page with Python blocks, once without what it needs beside lpk and once with each such thing."""
    pages = []
    for page in (README, *DOCS):
        needs = {block.needs for block in blocks(page) if block.language == "python"}
        pages += [(page, need) for need in sorted(needs)]
    return pages


def skip_without(need: str) -> None:
    if need == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no GPU is usable here")
    elif need and importlib.util.find_spec(need) is None:
        pytest.skip(f"{need} is not installed")


@pytest.fixture(scope="module")
def given(tickets, validation, calibration):
    """The names that a page may use without having made them."""
    pooled = lpk.pool(tickets, 2, model=make_network(), validation=validation, calibration=calibration, progress=False)

    def names() -> dict:
        tickets.save("runs/a/tickets")
        pooled.save("runs/a/pooled/interpolation/round-02.safetensors")
        return {
            "model": make_network(),
            "tickets": tickets,
            "pooled": pooled,
            "images": make_images(20, seed=4)[0],
        }

    return names


@pytest.fixture
def run(given, tmp_path, monkeypatch):
    """run(page) runs its blocks; returns the names that they leave."""
    monkeypatch.chdir(tmp_path)

    def run_page(page: Path, need: str = "") -> dict:
        names = given()
        for block in blocks(page):
            if block.language == "python" and block.needs in ("", need):
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        return names

    return run_page


@pytest.mark.parametrize(
    ("page", "need"),
    [pytest.param(p, need, id=f"{p.stem}-{need}".strip("-")) for p, need in python_pages() if p != README],
)
def test_python_blocks_run(page, need, run):
    skip_without(need)
    run(page, need)


def test_the_script_of_the_readme(run, capsys):
    """What it says of itself and what its comments say; it is the example of that name."""
    script = next(block.text for block in blocks(README) if block.language == "python")
    assert script == (ROOT / "examples" / "thirty_lines.py").read_text() and len(script.splitlines()) == 30
    names = run(README)
    tickets, pools, network = names["tickets"], names["pools"], names["model"]
    assert [len(tickets), len(pools), len(pools[9].steps)] == [10, 10, 9]
    assert pools[9].keep == tickets[9].keep and f"{pools[9].density:.0%}" == "13%"
    printed = " ".join(capsys.readouterr().out.split())
    assert "of the 10 targets" in printed and "Recommended: " in printed and "M mult-adds" in printed
    assert Path("report/report.html").exists() and Path("run/tickets.json").exists()
    network.load_state_dict(pools[9].state_dict)
    assert names["logits"].shape == (500, 10)
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], network.eval()(names["test"][0]), rtol=1e-4, atol=1e-5)


def test_reader_of_the_formats_page(run):
    """Written from the page, without lpk: it has to find what lpk finds, in a pooled network, too."""
    names = run(ROOT / "docs" / "formats.md")
    ticket = Tickets.load("runs/a")[2]
    masks = ticket.masks
    assert list(names["tensors"]) == list(ticket.state_dict) and list(names["masks"]) == list(masks)
    for name, tensor in ticket.state_dict.items():
        dtype, shape, values = names["tensors"][name]
        assert names["DTYPES"][dtype] == str(tensor.dtype).removeprefix("torch.") and shape == list(tensor.shape)
        assert values == tensor.numpy().tobytes()
    for name, mask in masks.items():
        assert names["masks"][name] == mask.flatten().int().tolist()
    metadata, tensors, _ = names["read_sealed"](Path("runs/a/pooled/interpolation/round-02.safetensors"))
    assert {"round", "layout", "accuracy", "steps", "settings"} <= set(metadata)
    assert set(tensors) == {*ticket.state_dict, "lpk.mask"}


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The `lpk ...` commands of a page: in shell fences, in indented blocks and in code spans."""
    text = page.read_text()
    shell = [
        line for block in blocks(page) if block.language in ("sh", "bash", "shell") for line in block.text.split("\n")
    ]
    prose = FENCE.sub("", text)
    indented = [line for line in prose.split("\n") if line.startswith("    ")]
    spans = re.findall(r"`(lpk [^`]+)`", prose)
    parts = [part.strip() for line in (*shell, *indented, *spans) for part in line.split(" && ")]
    return [part for part in parts if part.startswith("lpk ")]


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.stem)
def test_commands_parse(page):
    lpk_command = typer.main.get_command(app)
    for line in commands(page):
        _, name, *arguments = shlex.split(line, comments=True)
        try:
            if name.startswith("-"):  # not parsed: it would be carried out
                assert name in {"--help", *(option for each in lpk_command.params for option in each.opts)}, line
                continue
            command = lpk_command.commands[name]
            options = command.make_context(name, arguments).params if arguments else {}  # else: it is only named
        except typer.Exit:  # --version, --help
            continue
        except Exception as error:  # an unknown command, option or value
            pytest.fail(f"{page.name}: {line}: {error!r}")
        if options.get("preset") and not options["preset"].endswith(".toml"):
            assert options["preset"] in presets.names(), line


def test_commands_are_found_and_wrong_ones_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`lpk pool a --nonsense`\n")
    assert commands(README) and commands(page) == ["lpk pool a --nonsense"]
    with pytest.raises(pytest.fail.Exception, match="nonsense"):
        test_commands_parse(page)
    page.write_text("```sh\nlpk pool a --target one  # x\n```\n")
    with pytest.raises(pytest.fail.Exception, match="one"):
        test_commands_parse(page)


def test_names_of_the_api_page_are_imported_as_it_says():
    """In a process of its own: what the tests imported is an attribute of `lpk`, too."""
    page = (ROOT / "docs" / "api.md").read_text()
    said = set(re.findall(r"`(lpk\.[\w.]+)`", page.partition("Everything else")[0]))
    assert said == {f"lpk.{name}" for name in (*lpk.__all__, *lpk._FOLDERS) if not name.startswith("__")}
    headings = re.findall(r"\{heading: ([\w.]+)", page)
    assert headings
    lines = []
    for name in (*sorted(said), *headings):
        module, _, last = name.rpartition(".")
        by_attribute = any(name == each or name.startswith(f"{each}.") for each in said)
        lines.append(name if by_attribute else f"from {module} import {last}")
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(["import lpk", *lines])], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_address_of_the_repository_stands_in_one_place():
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    host = address.split("/")[2]
    folders = [ROOT / name for name in ("lpk", "csrc", "kernels", "bench", "tests", "docs", "examples")]
    pages = [*ROOT.glob("*.*"), *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = {page: page.read_bytes() for page in pages if page.is_file() and page.suffix != ".so"}
    named = [page.name for page, text in texts.items() if host.encode() in text]
    assert named == ["pyproject.toml"] and texts[ROOT / "pyproject.toml"].count(host.encode()) == 1
    assert "git clone <this repository> && cd lpk" in README.read_text()  # setup.py puts the address there


# --- links and versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*TOP, *DOCS], ids=lambda page: page.stem)
def test_relative_links_resolve(page):
    """Anchors are checked by `mkdocs build --strict`."""
    prose = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path = target.partition("#")[0]
        if path and not re.match(r"\w+:", path):
            assert (page.parent / path).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_files_and_folders_that_are_named_are_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:lpk|csrc|kernels|bench|tests|docs|examples)/[\w./-]+)`", text)
    named += re.findall(r"^    ([a-z_/]+/) ", text, re.MULTILINE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_tables_of_the_results_page_are_those_of_the_results():
    page = (ROOT / "docs" / "results.md").read_text()
    shown = [path for path in sorted((ROOT / "docs" / "results").glob("*.json")) if f"<!-- {path.stem} -->" in page]
    assert shown
    for path in shown:
        name, tables = bench.table.tables_of(files.read_json(path))
        assert name == path.stem
        page = bench.table.updated(page, name, tables)
    assert page == (ROOT / "docs" / "results.md").read_text()


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
