"""The house rules that a reader relies on: imports point one way, matplotlib has one importer, names are documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ctrlgen as cg

ROOT = Path(cg.__file__).parent
# A module imports at its top only from its own line or the lines above.
LINES = [
    {
        "estimate",
        "precision",
        "threads",
        "once",
        "rows",
        "checks",
        "schedule",
        "formula",
        "continuity",
        "scalars",
        "trace",
        "objects",
        "system",
        "field",
    },
    {"domain", "polytope", "gain", "constraint", "constraints"},
    {"prove"},
    {"datasets"},
    {"energies"},
    {"records", "foreign", "store"},
    {"measure"},
    {"safety"},
    {"plants"},
    {"modes", "feedback"},
    {"response"},
    {"loop"},
    {"gibbs", "shift"},
    {"certify", "accelerate"},
    {"training", "tables"},
    {"quality", "recipes"},
    {"interop"},
    {"plot"},
    {"demo", "jobs", "report"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LINES) for name in names}


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if not {"_models", "docs"} & set(p.relative_to(ROOT).parts))


def top_level_imports(path):
    """ctrlgen modules that a file imports when it is imported (TYPE_CHECKING blocks and functions left out)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctrlgen":
            parts = (node.module or "").split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("ctrlgen."))


def house_name(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    name = house_name(path)
    if name == "__init__":
        assert not list(top_level_imports(path))
        return
    assert name in LEVEL, f"{name} has no place in the house; add it to LINES where it belongs"
    for other in top_level_imports(path):
        assert LEVEL[other] <= LEVEL[name], f"{path.name} imports {other}, which stands below it"


def test_the_rule_would_see_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from ctrlgen.loop import ClosedLoop\nfrom ctrlgen import plot\nimport ctrlgen.cli\n")
    assert list(top_level_imports(wrong)) == ["loop", "plot", "cli"]


def test_only_plot_imports_matplotlib():
    importers = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(n.split(".")[0] == "matplotlib" for n in names):
                importers.add(house_name(path))
    assert importers == {"plot"}


@pytest.mark.parametrize("name", cg.__all__)
def test_public_names_exist_and_are_documented(name):
    thing = getattr(cg, name)
    assert (thing.__doc__ or "").strip()
    if inspect.isclass(thing):
        for label, member in vars(thing).items():
            public = inspect.isfunction(member) or isinstance(member, property)
            if public and not label.startswith("_"):
                assert (inspect.getdoc(getattr(thing, label)) or "").strip(), f"{name}.{label} has no docstring"


@pytest.mark.parametrize(
    ("module", "wrong", "meant"),
    [
        (cg, "Langvin", "Langevin"),
        (cg, "Quadratik", "Quadratic"),
        (cg, "gaussian_mixture", "GaussianMixture"),
        (cg, "GIBBS", "Gibbs"),
        (cg.interop, "to_nlsy", "to_nlsys"),
        (cg.interop, "DensityFeedback", "density_feedback"),
    ],
)
def test_a_misspelt_name_is_told_what_was_meant_once(module, wrong, meant):
    with pytest.raises(AttributeError) as caught:
        getattr(module, wrong)
    told = f"module '{module.__name__}' has no attribute '{wrong}'. Did you mean '{meant}'?"
    assert str(caught.value) == told
    printed = subprocess.run(  # Python may add a suggestion of its own where nothing catches the error
        [sys.executable, "-c", f"import {module.__name__} as m; m.{wrong}"], capture_output=True, text=True, check=False
    )
    assert printed.stderr.splitlines()[-1] == f"AttributeError: {told}"


def test_a_name_like_no_other_is_told_what_exists():
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'. It has Annealing, .*Quadratic, .* train\.$"):
        cg.zzz  # noqa: B018  # pyright: ignore
    with pytest.raises(AttributeError, match=r"'ctrlgen.interop' has no attribute 'zzz'. It has density_feedback, "):
        cg.interop.zzz  # noqa: B018  # pyright: ignore
    assert set(cg.interop._NAMES) <= set(dir(cg.interop))


def test_no_file_of_the_package_is_two_ideas():
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 650}
    assert not long


def test_every_subpackage_is_installed():
    listed = (ROOT.parent / "setup.cfg").read_text().split("packages =")[1].split("package_dir")[0].split()
    found = {f"ctrlgen.{p.parent.name}" for p in ROOT.glob("*/__init__.py")}
    assert found <= set(listed)
