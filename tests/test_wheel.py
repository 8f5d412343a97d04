"""The wheel: built without network, installed alone, it ingests and answers outside of the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from curator import demo

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def curator(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the installed wheel. Dependencies are those of this environment, its packages come last."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    # Only a path, and no .pth file of its own is read: the editable install of this environment stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "curator"


def test_the_wheel_holds_what_it_needs_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"curator", "index"}
    assert "curator/_migrations/env.py" in names
    assert "curator/demo/model/model.safetensors" in names
    assert not [name for name in names if name.endswith((".pyc", ".db"))]


def test_the_wheel_works_alone(curator: Path, tmp_path: Path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CURATOR"))}

    def run(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import curator, index; from curator.metadata.database import _config; from curator.demo import MODEL"
    found = run(
        str(curator.parent / "python"), "-c",
        f"{where}; print(curator.__file__, index.__file__, _config().get_main_option('script_location'), MODEL)",
    )  # fmt: skip
    site, model = curator.parent.parent, found.split()[-1]
    assert all(path.startswith(str(site)) for path in found.split()), found
    assert found.split()[2].endswith("curator/_migrations")
    assert [path.name for path in tmp_path.iterdir()] == []

    lines = demo.CORPUS.read_text("utf-8").splitlines(keepends=True)[:40]
    (tmp_path / "part.jsonl").write_text("".join(lines), "utf-8")
    columns = ["--prompt-field", "prompt", "--response-field", "response"]
    report = json.loads(
        run(
            str(curator), "ingest", "part.jsonl", "--dataset", "d", "--store", "s", "--model", model, *columns, "--json"
        )
    )
    assert report["added"] == 40
    question = ["--prompt", "Which city is the capital of Canada?", "--response", " Ottawa"]
    document = json.loads(run(str(curator), "query", "--store", "s", *question, "--json"))
    assert len(document["helpful"]) == len(document["harmful"]) == 10
