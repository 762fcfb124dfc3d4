"""Nothing that a stranger wrote is run, extracted or shown raw; nothing secret is written down."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import io
import json
import tarfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
from corpora import jpeg, rows, shard, write_tar

from rrcluster.config import load, redacted
from rrcluster.io.store import Store
from rrcluster.records import Bad, Sample, UserError

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = [p for top in ("rrcluster", "pipelines") for p in (REPOSITORY / top).rglob("*.py")]
FORBIDDEN = {
    "eval", "exec", "compile", "pickle.load", "pickle.loads", "cloudpickle.load",
    "cloudpickle.loads", "marshal.loads", "yaml.load", "os.system", "os.popen", "subprocess.run",
    "subprocess.Popen", "shutil.unpack_archive", "joblib.load", "torch.hub.load",
}  # fmt: skip
METHODS = {"extract", "extractall"}
MUST_SAY = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        said = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        argument, value = MUST_SAY.get(name, ("", None))
        if (
            name in FORBIDDEN
            or name.rpartition(".")[2] in METHODS
            or (argument and said.get(argument) != value)
            or said.get("shell")
            or said.get("trust_remote_code")
        ):
            found.append(name)
    return found


def test_no_call_in_the_source_can_run_what_data_says() -> None:
    found = {str(path): dangers(path.read_text()) for path in SOURCES}
    assert len(found) > 80
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line",
    ["pickle.loads(x)", "np.load(f)", "tar.extractall()", "torch.load(f, weights_only=False)",
     "eval(x)", "run(x, shell=True)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert dangers(line)


def test_members_with_paths_and_links_are_keys_and_write_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = write_tar(inside / "a.tar", [("../../evil.jpg", jpeg(1)), ("/etc/evil.jpg", jpeg(2))])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    found = rows(shard(path))
    assert [r.key for r in found if isinstance(r, Sample)] == ["../../evil", "/etc/evil"]
    assert [r.reason for r in found if isinstance(r, Bad)] == ["missing_image"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/evil.jpg").exists()


def test_a_compressed_shard_that_swells_is_streamed_and_its_giant_member_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rrcluster.io.webdataset.MAX_IMAGE_BYTES", 1 << 20)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, size in (("a.jpg", 64 << 20), ("b.json", 64 << 20)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(content.getvalue()))
    assert path.stat().st_size < 1 << 18
    first, second = rows(shard(path))
    assert (first.reason, second.reason) == ("too_large", "missing_image")


def test_storage_options_are_shown_by_name_only() -> None:
    config = load(["corpus.storage_options={key: k, secret: s3cr3t, client_kwargs: {x: s3cr3t}}"])
    assert "s3cr3t" not in json.dumps(redacted(config))
    assert set(redacted(config)["corpus"]["storage_options"]) == {"key", "secret", "client_kwargs"}
    assert "s3cr3t" not in repr(Store("memory://x", config.corpus.storage_options))


def test_a_mistake_in_storage_options_is_named_without_its_value() -> None:
    with pytest.raises(UserError) as found:
        load(["corpus.storage_options={secret: s3cr3t"])
    assert "corpus.storage_options" in str(found.value)
    assert "s3cr3t" not in str(found.value)


def test_an_array_with_objects_in_the_run_folder_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|Array can't be memory-mapped|plain"):
        Store(str(tmp_path)).read_npy("x.npy")


def _audit():
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci/audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_audit_finds_old_packages_and_loose_bounds() -> None:
    audit = _audit()
    holes = {"pillow": {"since": "9999", "why": "a hole"}, "evil": {"since": "2", "why": "x"}}
    (old,) = audit.installed_findings(list(distributions()), holes)
    assert "pillow" in old
    project = {
        "dependencies": ["evil>=1", "pillow>=9999", "x @ https://example.com/x.whl"],
        "optional-dependencies": {"test": ["evil"]},
    }
    found = list(audit.declared_findings(project, holes))
    assert len(found) == 2
    assert "evil>=1" in found[0]
    assert "example.com" in found[1]


def test_the_project_passes_its_own_audit() -> None:
    audit = _audit()
    advisories = tomllib.loads((REPOSITORY / ".ci/advisories.toml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert list(audit.declared_findings(project, advisories)) == []
