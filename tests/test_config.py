import pytest

from rrcluster.config import Config, as_yaml, identity, identity_hash, load, redacted, settings_help
from rrcluster.records import UserError


def test_defaults_compose_and_groups_choose_whole_parts() -> None:
    config = load(["compute=gpu_pool", "encoder=timm", "corpus.uri=s3://b/c"])
    assert config.compute.address == "auto"
    assert config.compute.gpus_per_worker == 1
    assert config.encoder.kind == "timm"
    assert config.k == "auto"


@pytest.mark.parametrize(
    ("override", "setting", "hint"),
    [
        ("corpus.urii=x", "corpus.urii", "corpus.uri"),
        ("encoder=clip_b33", "encoder", "clip_b32"),
        ("corpus.format=zip", "corpus.format", "webdataset"),
        ("k=0", "k", "positive integer"),
        ("k=[100,10]", "k", "coarse to fine"),
        ("k=many", "k", "auto"),
        ("seed=abc", "seed", "int"),
        ("refine.eps2=wide", "refine.eps2", "float"),
        ("compute.workers=two", "compute.workers", "int or null"),
        ("seed", "seed", "name=value"),
        ("corpus.key_column=a[b", "corpus.key_column", "quote it"),
    ],
)
def test_a_mistake_names_the_setting_and_what_would_work(
    override: str, setting: str, hint: str
) -> None:
    with pytest.raises(UserError) as found:
        load([override])
    assert found.value.setting == setting
    assert hint in str(found.value)
    assert "\n" not in str(found.value)


def test_k_may_be_a_list_from_coarse_to_fine() -> None:
    assert load(["k=[10,100]"]).k == [10, 100]
    assert load(["k=1_000"]).k == 1000


def test_compute_and_output_do_not_change_the_identity_but_the_seed_does() -> None:
    base = load(["corpus.uri=/c"])
    other = load(
        ["corpus.uri=/c", "compute.workers=7", "write.partition_by=cluster", "run_dir=/elsewhere"]
    )
    assert identity(base) == identity(other)
    assert identity_hash(identity(base)) != identity_hash(identity(load(["seed=1"])))


def test_secrets_are_not_part_of_what_is_shown_or_hashed() -> None:
    config = load(["corpus.storage_options.secret=hush", "corpus.uri=s3://b/c"])
    assert config.corpus.storage_options == {"secret": "hush"}
    assert "hush" not in str(redacted(config))
    assert "hush" not in str(identity(config))


def test_every_setting_is_explained() -> None:
    unexplained = [name for name, _, sentence in settings_help() if not sentence]
    assert unexplained == []


def test_the_composed_configuration_is_printed_as_yaml() -> None:
    assert "uri: /c" in as_yaml(["corpus.uri=/c"])


def test_a_local_path_travels_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(["corpus.uri=photos", "run_dir=runs/a"])
    assert config.corpus.uri == str(tmp_path / "photos")
    assert config.run_dir == str(tmp_path / "runs/a")


@pytest.mark.parametrize("uri", ["s3://b/{00000..00999}.tar", "/c/0[01].tar", "/it's/*.tar"])
def test_globs_and_braces_are_taken_as_typed(uri: str) -> None:
    assert load([f"corpus.uri={uri}"]).corpus.uri == uri


def test_a_list_of_uris_is_a_list() -> None:
    assert load(["corpus.uri=[/a,/b]"]).corpus.uri == ["/a", "/b"]


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_settings_of_any_shape_are_set_with_and_without_a_plus(sign) -> None:
    config = load([
        "encoder=timm", f"{sign}encoder.model_options={{num_classes: 3}}",
        f"{sign}encoder.mean=[0.5,0.5,0.5]", f"{sign}encoder.feature_transform=sqrt_unit",
        f"{sign}compute.resources.tpu=1", f"{sign}corpus.uri=a/*.tar",
    ])  # fmt: skip
    assert config.encoder.model_options == {"num_classes": 3}
    assert config.encoder.mean == [0.5, 0.5, 0.5]
    assert config.encoder.feature_transform == "sqrt_unit"
    assert config.compute.resources == {"tpu": 1}
    assert str(config.corpus.uri).endswith("a/*.tar")


def test_no_setting_that_changes_results_has_another_default_when_composed() -> None:
    assert identity(load([])) == identity(Config())
