"""Configuration from file, environment and command line: what is read, and the words for what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import ConfigError, LogSection, dump, load
from shared.fields import between, name_like
from shared.units import Duration, Endpoint, Size

TRUE = "true (YAML reads on, off, yes and no without quotes as true and false)"


@attrs.frozen
class Entry:
    id: int = attrs.field(validator=between(1, 9))
    name: str = "x"


@attrs.frozen
class Section:
    name: str = attrs.field(validator=name_like)
    cache: Size = attrs.field(default=Size(32 << 20))
    pause: Duration = attrs.field(default=Duration(0.25))
    ratio: float = 1.5
    entries: tuple[Entry, ...] = ()
    ends: tuple[Endpoint, ...] = ()
    count: int = 3


@attrs.frozen
class Example:
    section: Section
    log: LogSection = attrs.field(factory=LogSection)
    audit: LogSection = attrs.field(factory=LogSection)
    insecure: bool = False

    def problems(self) -> list[tuple[str, str]]:
        if self.insecure and self.section.count > 5:
            return [("section.count", "must be at most 5 when insecure")]
        return []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "example.yaml"


def problems(file: Path | None, text: str | bytes = "", **more: dict[str, str]) -> list[str]:
    """The lines of the ConfigError, without the folder of the file."""
    if file is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(Example, file, more.get("environ"), more.get("overrides"))
    folder = f"{file.parent}{os.sep}" if file else "\0"
    return [line.replace(folder, "") for line in str(caught.value).split("\n")]


# -- what is read


def test_a_full_file(file: Path) -> None:
    file.write_text("""
section:
  name: store-1
  cache: 1GiB
  pause: 30min
  ratio: 2
  entries: [{id: 1, name: a}, {id: 2}]
  ends: ["tcp://127.0.0.1:7200"]
  count: 5
log: {level: debug, format: console}
insecure: true
""")
    assert load(Example, file) == Example(
        Section(
            "store-1",
            Size(1 << 30),
            Duration(1800.0),
            2.0,
            (Entry(1, "a"), Entry(2)),
            (Endpoint("tcp://127.0.0.1:7200"),),
            5,
        ),
        LogSection("debug", "console"),
        insecure=True,
    )


def test_defaults_and_empty_sections(file: Path) -> None:
    file.write_text("section: {name: a}\nlog:\n")
    assert load(Example, file) == Example(Section("a"))


def test_the_environment_beats_the_file_and_the_command_line_beats_both(file: Path) -> None:
    file.write_text("section: {name: file, count: 1, ratio: 1.0}")
    config = load(
        Example,
        file,
        {"RINGKV_SECTION__NAME": "environment", "RINGKV_SECTION__COUNT": "2", "RINGKV__INSECURE": "true"},
        {"section.name": "flag", "log.level": "error"},
    )
    assert (config.section.name, config.section.count, config.section.ratio) == ("flag", 2, 1.0)
    assert (config.insecure, config.log.level) == (True, "error")


def test_other_variables_are_not_configuration(file: Path) -> None:
    file.write_text("section: {name: a}")
    environ = {
        "RINGKV_URL": "kv://127.0.0.1",
        "RINGKV_NO_COLOR": "1",
        "PATH": "/",
        "MY__VARIABLE": "1",
        "XRINGKV_A__B": "1",
    }
    assert load(Example, file, environ) == Example(Section("a"))


def test_no_file_is_a_configuration_too() -> None:
    assert load(Example, None, {"RINGKV_SECTION__NAME": "a"}) == Example(Section("a"))


def test_texts_are_read_by_the_type_of_their_key() -> None:
    texts = {
        "section.name": "007",
        "section.cache": "64MiB",
        "section.pause": "5s",
        "section.ratio": "0.5",
        "section.count": "-7",
        "section.ends": "tcp://a:1,tcp://b:2",
        "section.entries": "[{id: 1, name: a}]",
        "insecure": "true",
    }
    assert load(Example, None, {}, texts) == Example(
        Section(
            "007",
            Size(64 << 20),
            Duration(5.0),
            0.5,
            (Entry(1, "a"),),
            (Endpoint("tcp://a:1"), Endpoint("tcp://b:2")),
            -7,
        ),
        insecure=True,
    )


@pytest.mark.parametrize("written", ["007", "12:30", "2026-01-01", "1e3", "0x_"])
def test_what_looks_like_a_yaml_surprise_stays_the_text_it_is(file: Path, written: str) -> None:
    file.write_text(f"section: {{name: a, entries: [{{id: 1, name: {written}}}]}}")
    assert load(Example, file).section.entries[0].name == written


def test_an_override_changes_one_place_of_an_aliased_section(file: Path) -> None:
    file.write_text("log: &a {level: debug}\naudit: *a\nsection: {name: a}\n")
    config = load(Example, file, {}, {"log.level": "error"})
    assert (config.log.level, config.audit.level) == ("error", "debug")


# -- what is refused


def test_every_problem_is_reported_at_once_with_its_place_and_a_suggestion(file: Path) -> None:
    text = """
section: {nmae: a, cache: 64MB, entries: [{id: 1}, {id: 10}, {idd: 2}], count: no}
log: {level: trace}
insecrue: true
"""
    lines = problems(
        file,
        text,
        environ={"RINGKV_LOG__FROMAT": "json"},
        overrides={"section.paus": "1s", "section.ratio": "x"},
    )
    assert sorted(lines) == sorted(
        [
            "example.yaml: section.name: is required",
            "example.yaml: section.nmae: unknown key (did you mean section.name?)",
            "example.yaml: section.cache: 'MB' is no unit of size: write B, KiB, MiB, GiB or TiB",
            "example.yaml: section.entries[1].id: must be between 1 and 9, not 10",
            "example.yaml: section.entries[2].id: is required",
            "example.yaml: section.entries[2].idd: unknown key (did you mean section.entries[2].id?)",
            "example.yaml: section.count: expected a whole number, got false "
            "(YAML reads on, off, yes and no without quotes as true and false)",
            "example.yaml: log.level: expected one of debug, info, warning, error, got the text 'trace'",
            "example.yaml: insecrue: unknown key (did you mean insecure?)",
            "RINGKV_LOG__FROMAT: log.fromat: unknown key (did you mean RINGKV_LOG__FORMAT?)",
            "command line: section.paus: unknown key (did you mean section.pause?)",
            "command line: section.ratio: expected a number, got the text 'x'",
        ]
    )


def test_errors_are_data_too(file: Path) -> None:
    file.write_text("section: {name: a, cuont: 1}")
    with pytest.raises(ConfigError) as caught:
        load(Example, file)
    (error,) = caught.value.errors
    assert (error.source, error.path, error.text, error.suggestion) == (
        str(file),
        "section.cuont",
        "unknown key",
        "section.count",
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "on",
            f"expected text, got {TRUE}: quote it",
        ),
        ("1000", "expected text, got the number 1000: quote it"),
        ("1.5", "expected text, got the number 1.5: quote it"),
        ("", "expected text, got nothing"),
        ("[a]", "expected text, got a list"),
        ("{a: b}", "expected text, got a section with keys"),
        (
            "'a b'",
            "must be 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit, not 'a b'",
        ),
    ],
)
def test_a_text_must_be_written_as_one(file: Path, value: str, words: str) -> None:
    assert problems(file, f"section: {{name: {value}}}") == [f"example.yaml: section.name: {words}"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("count", "1e3", "expected a whole number, got the text '1e3': write it in digits, without quotes"),
        ("count", "'5'", "expected a whole number, got the text '5': write it in digits, without quotes"),
        ("count", "007", "expected a whole number, got the text '007': write it in digits, without quotes"),
        (
            "count",
            "12:30",
            "expected a whole number, got the text '12:30': write it in digits, without quotes",
        ),
        ("count", "5.0", "expected a whole number, got the number 5.0: write it in digits, without quotes"),
        ("cache", "1e3", "expected a size such as 64MiB, got '1e3'"),
        ("cache", "-1", "expected a size such as 64MiB, got '-1'"),
        (
            "cache",
            "yes",
            f"expected a size such as 64MiB, got {TRUE}",
        ),
        ("pause", "5", "expected a duration with its unit (ms, s, min, h or d) such as 5s, got '5'"),
        ("pause", "[]", "expected a duration such as 250ms or 5s, got a list"),
        ("ratio", "'2'", "expected a number, got the text '2'"),
        ("ratio", ".nan", "expected a number, got the number nan"),
        ("ends", "tcp://a:1", "expected a list, got the text 'tcp://a:1'"),
        ("entries", "{id: 1}", "expected a list, got a section with keys"),
    ],
)
def test_types_are_strict(file: Path, key: str, value: str, words: str) -> None:
    assert problems(file, f"section: {{name: a, {key}: {value}}}") == [
        f"example.yaml: section.{key}: {words}"
    ]


def test_an_endpoint_in_a_list_is_named_by_its_index(file: Path) -> None:
    assert problems(file, "section: {name: a, ends: ['tcp://a:1', 'a:2']}") == [
        "example.yaml: section.ends[1]: expected an endpoint such as tcp://127.0.0.1:7100, got 'a:2'"
    ]


@pytest.mark.parametrize("value", ["'true'", "1", "TRUE.", "null"])
def test_a_switch_is_true_or_false(file: Path, value: str) -> None:
    (line,) = problems(file, f"section: {{name: a}}\ninsecure: {value}")
    assert line.startswith("example.yaml: insecure: expected true or false, got ")


@pytest.mark.parametrize("value", ["5", "[a]", "text"])
def test_a_section_must_have_keys(file: Path, value: str) -> None:
    blocked, line = problems(file, f"section: {{name: a}}\nlog: {value}", overrides={"log.level": "info"})
    assert blocked == "command line: log.level: unknown key: log is no section"
    assert line.startswith("example.yaml: log: expected a section with keys, got ")


def test_a_section_cannot_be_set_as_a_text() -> None:
    lines = problems(None, overrides={"section.name": "a", "log": "debug"})
    assert lines == ["command line: log: is a section: set its keys one by one"]


@pytest.mark.parametrize(
    "name", ["RINGKV__", "RINGKV_X__Y", "RINGKV_SECTION__", "RINGKV_A__B__C", "RINGKV_SECTION__NAME__X"]
)
def test_unknown_variables_with_two_underscores_are_refused(name: str) -> None:
    (line,) = problems(None, environ={name: "1", "RINGKV_SECTION__NAME": "a"})
    assert line.startswith(f"{name}: ")
    assert "unknown key" in line


def test_a_misspelt_section_in_the_environment_is_suggested_as_a_variable() -> None:
    lines = problems(None, environ={"RINGKV_LOGG__LEVEL": "info"}, overrides={"section.name": "a"})
    assert lines == ["RINGKV_LOGG__LEVEL: logg.level: unknown key (did you mean RINGKV_LOG__LEVEL?)"]


def test_a_known_key_in_the_wrong_section_is_pointed_to_its_own() -> None:
    lines = problems(None, overrides={"section.name": "a", "level": "debug"})
    assert lines == ["command line: level: unknown key (did you mean log.level?)"]


def test_a_list_that_is_no_list_is_one_line() -> None:
    lines = problems(None, overrides={"section.name": "a", "section.entries": "[{id: 1"})
    assert lines == ["command line: section.entries: expected a list such as [a, b], got '[{id: 1'"]


def test_what_only_several_keys_together_get_wrong(file: Path) -> None:
    lines = problems(file, "section: {name: a, count: 6}", environ={"RINGKV__INSECURE": "true"})
    assert lines == ["example.yaml: section.count: must be at most 5 when insecure"]


# -- files that are none


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "not valid YAML: line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        (
            b"section: {name: a}\nsection: {name: b}\n",
            "not valid YAML: line 2, column 1: the key 'section' is there twice",
        ),
        (
            b"section:\n  name: a\n  name: b\n",
            "not valid YAML: line 3, column 3: the key 'name' is there twice",
        ),
        (b"- a\n- b\n", "expected sections with keys at the top, got a list"),
        (b"hello", "expected sections with keys at the top, got the text 'hello'"),
        (
            b"a: !!python/object/apply:os.system [id]",
            "not valid YAML: line 1, column 4: could not determine a constructor",
        ),
        (b"a: \x00", "not valid YAML: "),
        (b"\xff\xfe\xfd", "not valid YAML: "),
        (b"? [a]\n: b\n", "not valid YAML: line 1, column 3: found unhashable key"),
        (b"[" * 1500, "not valid YAML: "),
        (b"#" * (1 << 20) + b"\n", "over 1MiB: this is no configuration file"),
        (b"a: b\n---\nc: d\n", "not valid YAML: line 2, column 1: but found another document"),
    ],
)
def test_files_that_hold_no_configuration(file: Path, content: bytes, words: str) -> None:
    (line,) = problems(file, content)
    assert line.startswith(f"example.yaml: {words}")


def test_keys_that_are_no_text_are_unknown_keys(file: Path) -> None:
    lines = problems(file, "section: {name: a}\non: 1\n7: 2\n")
    assert lines == ["example.yaml: 7: unknown key", "example.yaml: True: unknown key"]


def test_an_empty_file_only_lacks_what_is_required(file: Path) -> None:
    assert problems(file, "") == ["example.yaml: section: is required"]
    assert problems(file, "# nothing\n") == ["example.yaml: section: is required"]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        load(Example, tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(Example, tmp_path)


def test_a_file_that_never_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match="this is no configuration file"):
        load(Example, "/dev/zero")


# -- and back


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
surprises = st.sampled_from(
    [
        "on",
        "no",
        "null",
        "1e3",
        "007",
        "12:30",
        "2026-01-01",
        "0x10",
        "1.5",
        "~",
        "- a",
        "a: b",
        "\x85",
        "\u2028",
    ]
)
examples = st.builds(
    Example,
    section=st.builds(
        Section,
        name=names | surprises.filter(lambda text: text[0].isalnum() and ":" not in text),
        cache=st.integers(0, 1 << 49).map(Size),
        pause=st.integers(0, 10**9).map(lambda ms: Duration(ms / 1000)),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        entries=st.lists(
            st.builds(Entry, id=st.integers(1, 9), name=st.text(max_size=20) | surprises), max_size=3
        ).map(tuple),
        ends=st.lists(st.sampled_from([Endpoint("tcp://127.0.0.1:1"), Endpoint("tcp://[::1]:2")])).map(tuple),
        count=st.integers(-100, 5),
    ),
    log=st.builds(
        LogSection,
        st.sampled_from(["debug", "info", "warning", "error"]),
        st.sampled_from(["json", "console"]),
    ),
    insecure=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(config=examples)
def test_a_dumped_configuration_loads_back_to_the_same(
    config: Example, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config))
    assert load(Example, path) == config


def test_a_dump_shows_units(file: Path) -> None:
    file.write_text("section: {name: a}")
    shown = yaml.safe_load(dump(load(Example, file)))
    assert (shown["section"]["cache"], shown["section"]["pause"]) == ("32MiB", "250ms")
