"""trimtab.toml: what is read, what is refused and in which words, and that what is written reads back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.store.errors import ProjectError
from trimtab.store.project import ModelPaths, Project, render

MODEL = """
[[model]]
name = "flights"
task = "binary"
classes = ["0", "1"]
positive = "1"
[[model.feature]]
name = "distance"
type = "real"
transforms = ["impute", { op = "clip", low = 0.0, high = 1.0 }]
[[model.feature]]
name = "carrier"
type = "string"
[model.label]
column = "delayed"
key = ["flight", "carrier"]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ProjectError) as caught:
        Project.loads(text, "/p")
    assert all(line.startswith("trimtab.toml: ") and "\n" not in line for line in caught.value.problems)
    return [line.removeprefix("trimtab.toml: ") for line in caught.value.problems]


def test_the_least_project_has_every_default() -> None:
    project = Project.loads(MODEL, "/p")
    model = project.model()
    assert project.server.grpc_port == 8001
    assert (model.label.horizon, model.label.cohort) == (30 * 86_400_000_000, 3_600_000_000)
    assert model.capture.max_age == 90 * 86_400_000_000
    assert model.retrain.min_interval == 0
    assert project.mlflow_uri == "sqlite:////p/state/mlflow.db"


def test_the_request_schema_ends_with_the_keys_that_are_no_features() -> None:
    schema = Project.loads(MODEL, "/p").model().request_schema()
    assert schema.names == ["distance", "carrier", "flight"]
    assert schema.types == ["real", "string", "string"]
    assert schema.keys == 1


def test_a_feature_without_a_chain_gets_its_types_default() -> None:
    specs = Project.loads(MODEL, "/p").model().specs()
    assert [[step.op for step in spec.transforms] for spec in specs] == [["impute", "clip"], ["vocabulary"]]


def test_state_paths() -> None:
    project = Project.loads(MODEL, "/p")
    paths = project.model_state("flights")
    assert paths == ModelPaths(Path("/p/state/flights"))
    assert paths.labels == Path("/p/state/flights/labels.sqlite")
    assert paths.decisions.parent == paths.versions.parent == paths.live.parent == paths.root


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("[model.capture]\nmax_byte = 5", "[model.capture] unknown key 'max_byte'; did you mean 'max_bytes'?"),
        ('[model.capture]\nmax_rows = "many"', '[model.capture] max_rows: expected an integer ≥ 1, got "many"'),
        ("[model.capture]\nmax_rows = 0", "[model.capture] max_rows: expected an integer ≥ 1, got 0"),
        ("[model.capture]\nmax_rows = true", "[model.capture] max_rows: expected an integer ≥ 1, got true"),
        ("[model.gate]\nalpha = 1.5", "[model.gate] alpha: expected a number > 0.0 and < 1.0, got 1.5"),
        ("[model.gate]\nmargin = nan", "[model.gate] margin: expected a number ≥ 0.0, got nan"),
        ("[modle]\nname = 1", "unknown section [modle]; did you mean [model]?"),
        (
            '[server]\ntransport = "tornado"',
            '[server] transport: expected one of "auto", "native", "grpcio", got "tornado"',
        ),
        ('[server]\ndevice = "tpu"', '[server] device: expected one of "auto", "cpu", "cuda", got "tpu"'),
        (
            "[model.batching]\npriority_levels = 2",
            "[model.batching] default_priority_level: expected 1 to priority_levels (2), got 0",
        ),
        (
            "[model.batching]\npriority_levels = 2\ndefault_priority_level = 1\n"
            "[model.batching.priority_queue_policy.3]\nmax_queue_size = 1",
            "[model.batching] priority_queue_policy: expected levels 1 to priority_levels (2), got '3'",
        ),
        (
            "[model.batching]\npreferred_batch_size = [9999]",
            "[model.batching] preferred_batch_size: expected sizes of at most max_batch_size (1024)",
        ),
        (
            '[model.retrain]\nmin_interval = "soon"',
            '[model.retrain] min_interval: expected a duration such as "30d", "1h", "90s" (or whole seconds), '
            'got "soon"',
        ),
        (
            '[model.retrain]\nschedule = "never"',
            "[model.retrain] schedule: expected a cron expression such as \"0 3 1 * *\", got 'never'",
        ),
        (
            '[model.capture]\nsample = "stratified"\nstrata_edges = [0.5]\nstrata_rates = [1.0]',
            "[model.capture] strata_rates: expected 2 (edges + 1), got 1",
        ),
        ('[data]\ntrain_rows = 5\nuntil = "x"', "[data] train_rows and until exclude each other; give one"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(more: str, line: str) -> None:
    assert problems(MODEL + more) == [line]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "flights"', 'name = "../x"', "expected letters, digits, '_', '-', '.'"),
        ('name = "flights"', "", "[[model]] 'name' is missing: Name of the model"),
        ('task = "binary"', 'task = "binary"\nentry = "m.M"', "expected \"module:name\", got 'm.M'"),
        ('"clip", low = 0.0', '"clop", low = 0.0', "[[model.feature]] 'distance' transforms: unknown op 'clop'"),
        ('type = "string"', 'type = "text"', "[[model.feature]] 'carrier' type: expected one of"),
        ('name = "carrier"', 'name = "_carrier"', "underscore"),
        ('name = "carrier"', 'name = "distance"', "[[model]] 'flights' feature 'distance' is listed twice"),
        ('positive = "1"', 'positive = "2"', "positive: expected one of ['0', '1'], got '2'"),
        ('classes = ["0", "1"]', 'classes = ["0", "1", "2"]', "expected the 2 label values of a binary task, got 3"),
        ('column = "delayed"', 'column = "carrier"', "label column 'carrier' is listed as a feature"),
        ("[[model]]", "[model]", "expected at least one section [[model]], got a table"),
    ],
)
def test_a_wrong_model_is_named_in_one_line(old: str, new: str, line: str) -> None:
    assert line in "\n".join(problems(MODEL.replace(old, new, 1)))


def test_every_problem_is_listed_and_the_message_is_still_one_line() -> None:
    with pytest.raises(ProjectError) as caught:
        Project.loads(MODEL + "[server]\nhots = 1\n[mlflow]\nenabled = 3", "/p")
    assert len(caught.value.problems) == 2
    assert str(caught.value).endswith("(and 1 more)")


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"no trimtab\.toml in .*trimtab init"):
        Project.load(tmp_path)
    (tmp_path / "trimtab.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProjectError, match="expected UTF-8"):
        Project.load(tmp_path)
    (tmp_path / "trimtab.toml").write_text("[server\n")
    with pytest.raises(ProjectError, match=r"not valid TOML: .*line 1"):
        Project.load(tmp_path)
    (tmp_path / "trimtab.toml").write_text("")
    with pytest.raises(ProjectError, match=r"section \[\[model\]\] is missing"):
        Project.load(tmp_path)


def test_models_are_found_by_name() -> None:
    two = Project.loads(MODEL + MODEL.replace('"flights"', '"trains"', 1), "/p")
    assert two.model("trains").name == "trains"
    with pytest.raises(ProjectError, match="several models; name one of 'flights', 'trains'"):
        two.model()
    with pytest.raises(ProjectError, match="no model 'ships'"):
        two.model("ships")


def test_what_is_rendered_reads_back_and_comments_everything() -> None:
    data = tomllib.loads(MODEL + "[data]\npath = 'a\"b\\\\c.csv'\nuntil = 2013-02-01\n[model.capture]\nrate = 0.5")
    text = render(data)
    assert Project.loads(text, "/p") == Project.from_dict(data, "/p")
    assert "# Disk budget of all captures" in text
    # Every commented-out default is what the setting is: put in force, nothing changes.
    in_force = "\n".join(
        line[2:]
        if " = " in line
        and line.startswith("# ")
        and line[2:].split(" ")[0].islower()
        and line[2:].split(" = ")[0].isidentifier()
        else line
        for line in text.split("\n")
    )
    assert in_force != text
    assert Project.loads(in_force, "/p") == Project.from_dict(data, "/p")


def test_rendering_refuses_what_could_not_be_loaded() -> None:
    with pytest.raises(KeyError):
        render({"server": {"prot": 1}})


VALUES = st.recursive(
    st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_any_value_reads_back_from_its_toml(value: Any) -> None:
    from trimtab.store.render import toml_value

    text = toml_value(value)
    assert "\n" not in text
    assert tomllib.loads(f"value = {text}")["value"] == value
