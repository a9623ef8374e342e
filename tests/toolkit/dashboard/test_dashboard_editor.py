"""Links that the page changes: what the command line would say of them, and that comments stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ruamel.yaml", reason="the extra `dashboard` is not installed")

from device_runtime.errors import ConfigurationError, RefusedError
from device_runtime.fleet import file
from device_runtime.fleet.link_fields import LINK
from tests.toolkit.dashboard.conftest import FLEET
from toolkit.dashboard.editor import FleetEditor

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(ROOT.glob("examples/*/fleet.yaml"))
NEW = {"name": "cold", "from": "plant/+/air", "when": "temp_c < 5", "prompt": "{{ temp_c }} °C.", "to": "plant/cold"}


@pytest.fixture
def editor(tmp_path: Path) -> FleetEditor:
    (tmp_path / "fleet.yaml").write_text(FLEET, encoding="utf-8")
    return FleetEditor(tmp_path / "fleet.yaml")


def fields(editor: FleetEditor, name: str) -> dict[str, str]:
    return dict(next(link for link in editor.links()["links"] if link["name"] == name))


def added(change) -> list[str]:
    lines = change.difference.splitlines()[2:]
    return [line for line in lines if line[:1] in "+-"]


def test_the_line_ends_of_windows_stay(editor: FleetEditor, tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    path.write_bytes(FLEET.encode().replace(b"\n", b"\r\n"))
    shown = editor.links()
    link = dict(shown["links"][0])
    change = editor.change(link["name"], link | {"prompt": link["prompt"] + "!"}, [])
    editor.save(change, shown["base"])
    assert path.read_bytes().count(b"\n") == path.read_bytes().count(b"\r\n") > 5 and b"!" in path.read_bytes()


def test_a_file_in_another_encoding_is_named(editor: FleetEditor, tmp_path: Path):
    (tmp_path / "fleet.yaml").write_bytes(FLEET.encode() + "# für".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="is not in UTF-8"):
        editor.links()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_an_unchanged_link_changes_nothing_in_any_example(path: Path, tmp_path: Path):
    copy = tmp_path / "fleet.yaml"
    copy.write_bytes(path.read_bytes())
    editor = FleetEditor(copy)
    shown = editor.links()
    for link in shown["links"]:
        serve = [device for device, links in shown["devices"].items() if link["name"] in links]
        change = editor.change(link["name"], link, serve)
        assert (change.difference, change.faults) == ("", ())


@pytest.mark.parametrize("indent", ["", "  ", "    "])
def test_lists_keep_their_indent(tmp_path, indent):
    text = FLEET.partition("links:\n  -")[0] + "links:\n\n# comment\n"
    for name in ("hot", "cold"):
        lines = [
            "- name: " + name,
            "  from: a/+",
            "  prompt: What now?",
            "  to: b",
            "  examples:",
            f"  {indent}- {{prompt: x, answer: y}}",
        ]
        text += "".join(f"{indent}{line}\n" for line in lines)
    (tmp_path / "fleet.yaml").write_text(text, encoding="utf-8")
    editor = FleetEditor(tmp_path / "fleet.yaml")
    change = editor.change("cold", fields(editor, "cold") | {"to": "c"}, [])
    assert added(change) == [f"-{indent}  to: b", f"+{indent}  to: c"]


def test_one_field_is_one_line(editor):
    change = editor.change("hot", fields(editor, "hot") | {"when": "temp_c > 95"}, ["north"])
    assert added(change) == ["-    when: temp_c > 80", "+    when: temp_c > 95"]
    assert change.faults == () and change.fleet is not None
    assert change.text.replace("95", "80") == FLEET


def test_a_new_link_is_added_and_served(editor, tmp_path):
    change = editor.change(
        None, NEW | {"answer": "type: object\nproperties: {ok: {type: boolean}}\nrequired: [ok]"}, ["north", "south"]
    )
    assert change.faults == ()
    editor.save(change, editor.links()["base"])
    fleet = file.load(tmp_path / "fleet.yaml")
    assert fleet.devices["north"].links == ("hot", "cold") and fleet.devices["south"].links == ("cold",)
    assert fleet.links[1].answer is not None and fleet.links[1].when == "temp_c < 5"
    text = (tmp_path / "fleet.yaml").read_text(encoding="utf-8")
    for comment in ("# The hall's devices. This", "# made elsewhere", "# a JSON payload", "# Most readings"):
        assert comment in text


def test_a_link_gets_another_name_everywhere(editor, tmp_path):
    editor.save(editor.change("hot", fields(editor, "hot") | {"name": "too-hot"}, ["north"]), editor.links()["base"])
    fleet = file.load(tmp_path / "fleet.yaml")
    assert fleet.devices["north"].links == ("too-hot",) and [link.name for link in fleet.links] == ["too-hot"]


def test_a_field_that_was_emptied_goes(editor):
    change = editor.change("hot", fields(editor, "hot") | {"when": ""}, ["north"])
    assert "-    when: temp_c > 80" in added(change) and change.fleet.links[0].when is None


COMMENTED = """\
schema: 1
models: {small: {bundle: a}}
devices: {pi: {model: small, links: [one, two]}}
links:
  - name: one
    from: a/+
    prompt: "{{ value }}"
    to: u
    deadline_s: 9   # nine

  # The second one.
  - name: two
    from: b/+
    prompt: "{{ value }}"
    to: v
    system: |
      Be short.
      # no comment
# the end
"""


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize(
    "changed", [{"when": "value > 3"}, {"deadline_s": "", "system": ""}, {"deadline_s": "8", "system": "Be brief."}]
)
def test_what_is_said_of_the_next_link_stays_before_it(tmp_path, name, changed):
    path = tmp_path / "fleet.yaml"
    path.write_text(COMMENTED, encoding="utf-8")
    editor = FleetEditor(path)
    asked = {**fields(editor, name), **changed}
    change = editor.change(name, asked, ["pi"])
    assert change.faults == ()
    assert "\n\n  # The second one.\n  - name: two\n" in change.text
    assert change.text.endswith("\n# the end\n") and change.text.count("# the end") == 1
    path.write_text(change.text, encoding="utf-8")
    assert {k: v.strip() for k, v in fields(editor, name).items()} == {k: v.strip() for k, v in asked.items() if v}


REMARKED = """\
schema: 1
models: {small: {bundle: a}}
devices:
  pi:
    model: small
    links:
      - one   # first
      - two   # second
  # The rack.
  rack:
    model: small

# Links of the fleet.
links:
  - name: one
    from: a/+
    prompt: "{{ value }}"
    to: u
  # The second one.
  - name: two
    from: b/+
    prompt: "{{ value }}"
    to: v

# The broker.
broker: {url: mqtt://localhost:1883}
"""


@pytest.mark.parametrize(
    ("link", "devices", "gone"),
    [
        ("two", [], ["# second"]), ("one", [], ["# first"]), ("one", ["pi", "rack"], []), (None, ["pi"], []),
        ("-two", [], ["# second"]), ("-one", [], ["# first"]),
    ],
)  # fmt: skip
def test_comments_stay_before_what_they_speak_of(tmp_path, link, devices, gone):
    path = tmp_path / "fleet.yaml"
    path.write_text(REMARKED, encoding="utf-8")
    editor = FleetEditor(path)
    if link is not None and link.startswith("-"):
        change = editor.removal(link[1:])
    else:
        change = editor.change(link, {**NEW, "when": ""} if link is None else fields(editor, link), devices)
    assert change.faults == ()
    for remark, what in (
        ("# The rack.", "  rack:"), ("\n# Links of the fleet.", "links:"), ("\n# The broker.", "broker:"),
        ("  # The second one.", "\n" if link == "-two" else "  - name: two"),
    ):  # fmt: skip
        assert f"{remark}\n{what}" in change.text
    assert [remark for remark in ("# first", "# second") if remark not in change.text] == gone


@pytest.mark.parametrize(
    ("wrong", "field", "word"),
    [
        ({"when": "temp_c >"}, "when", "not an expression"),
        ({"from": "plant/+x/boiler"}, "from", "must stand alone"),
        ({"to": "stonechat/1/north/in/generate"}, "to", "where devices are commanded"),
        ({"to": "plant/{{ topic[9] }}/x"}, "to", "topic"),
        ({"prompt": "{{ temp_c | upperr }}"}, "prompt", "did you mean 'upper'"),
        ({"answer": "{type: object"}, "answer", "not YAML"),
        ({"answer": "{type: objekt}"}, "answer", "objekt"),
        ({"deadline_s": "soon"}, "deadline_s", "soon"),
        ({"overload": "never"}, "overload", "never"),
        ({"name": "Not An Id"}, "name", "a-z"),
        ({"model": "nobody"}, "model", "nobody"),
        ({"unsure": "{below: 2}"}, "unsure", "2"),
    ],
)
def test_faults_are_those_of_the_command_line_at_their_fields(editor, tmp_path, wrong, field, word):
    change = editor.change("hot", fields(editor, "hot") | wrong, ["north"])
    assert change.fleet is None
    assert [fault["field"] for fault in change.faults][:1] == [field], change.faults
    assert any(word in fault["text"] for fault in change.faults)
    if field != "answer" or "YAML" not in word:
        (tmp_path / "fleet.yaml").write_text(change.text, encoding="utf-8")
        with pytest.raises(ConfigurationError) as refused:
            file.load(tmp_path / "fleet.yaml")
        assert all(fault["text"] in str(refused.value) for fault in change.faults)
    with pytest.raises(RefusedError, match="nothing was saved"):
        editor.save(change, change.base)


def test_the_page_has_every_field_of_a_link():
    page = (ROOT / "toolkit" / "dashboard" / "static" / "links.js").read_text(encoding="utf-8")
    assert [name for name in LINK.fields if f'name: "{name}"' not in page] == []


def test_what_is_missing_is_said(editor):
    change = editor.change(None, {"name": "empty"}, [])
    assert any("prompt" in fault["text"] for fault in change.faults)


def test_somebody_else_changed_the_file(editor, tmp_path):
    change = editor.change("hot", fields(editor, "hot") | {"when": "temp_c > 95"}, ["north"])
    (tmp_path / "fleet.yaml").write_text(FLEET + "# by hand\n", encoding="utf-8")
    with pytest.raises(RefusedError) as refused:
        editor.save(change, change.base)
    assert refused.value.status == 409
    assert (tmp_path / "fleet.yaml").read_text(encoding="utf-8").endswith("# by hand\n")


def test_a_symbolic_link_and_the_files_mode_stay(editor, tmp_path):
    real = tmp_path / "real.yaml"
    (tmp_path / "fleet.yaml").rename(real)
    real.chmod(0o640)
    (tmp_path / "fleet.yaml").symlink_to(real)
    editor.save(editor.change(None, NEW, ["north"]), editor.links()["base"])
    assert (tmp_path / "fleet.yaml").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert "cold" in real.read_text(encoding="utf-8")


def test_fields_that_no_link_has(editor):
    with pytest.raises(RefusedError, match="found models"):
        editor.change("hot", {"name": "hot", "models": "x"}, [])
    with pytest.raises(RefusedError, match="no link 'gone'"):
        editor.change("gone", NEW, [])


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@given(
    st.dictionaries(st.sampled_from(["name", "from", "when", "prompt", "to", "answer", "window", "deadline_s"]), texts)
)
def test_whatever_is_typed_is_taken_or_has_faults(tmp_path_factory, given_fields):
    path = tmp_path_factory.mktemp("any") / "fleet.yaml"
    path.write_text(FLEET, encoding="utf-8")
    editor = FleetEditor(path)
    change = editor.change("hot", fields(editor, "hot") | given_fields, ["north"])
    assert (change.fleet is None) == bool(change.faults)
    if change.fleet is not None:  # what is saved is what was typed
        prompt = given_fields.get("prompt")
        if prompt and prompt.strip():
            assert change.fleet.links[0].prompt.strip() == prompt.replace("\r\n", "\n").strip()


TWO = (
    FLEET.replace("links: [hot]", "links: [hot, cold]")
    + """\

  # The cold ones.
  - name: cold
    from: plant/+/air
    prompt: "{{ temp_c }} °C."

    # Where it goes.
    to: plant/cold

# The end.
"""
)


class TestRemoval:
    @pytest.fixture
    def two(self, tmp_path: Path) -> FleetEditor:
        (tmp_path / "fleet.yaml").write_text(TWO, encoding="utf-8")
        return FleetEditor(tmp_path / "fleet.yaml")

    @pytest.mark.parametrize("name", ["hot", "cold"])
    def test_a_link_goes_from_the_list_and_from_its_devices(self, two: FleetEditor, tmp_path: Path, name: str):
        other = {"hot": "cold", "cold": "hot"}[name]
        two.save(two.removal(name), two.links()["base"])
        fleet = file.load(tmp_path / "fleet.yaml")
        assert [link.name for link in fleet.links] == [other] and fleet.devices["north"].links == (other,)
        text = (tmp_path / "fleet.yaml").read_text(encoding="utf-8")
        for comment in (
            "# The hall's devices. This comment stays.",
            "# made elsewhere",
            "# The cold ones.",
            "# The end.",
        ):
            assert comment in text
        kept = {"hot": "# Where it goes.", "cold": "# Most readings never wake the model."}
        assert kept[name] in text and kept[other] not in text

    def test_only_its_lines_change(self, two: FleetEditor):
        difference = two.removal("cold").difference.splitlines()[2:]
        assert [line for line in difference if line[:1] == "+"] == ["+  north: {model: advisor, links: [hot]}"]
        assert len([line for line in difference if line[:1] == "-"]) == 7

    def test_the_last_one(self, editor: FleetEditor, tmp_path: Path):
        editor.save(editor.removal("hot"), editor.links()["base"])
        fleet = file.load(tmp_path / "fleet.yaml")
        assert fleet.links == () and fleet.devices["north"].links == ()
        assert "# The hall's devices. This comment stays." in (tmp_path / "fleet.yaml").read_text(encoding="utf-8")
        change = editor.change(None, NEW, ["north"])
        assert change.fleet is not None and [link.name for link in change.fleet.links] == ["cold"]

    def test_one_that_is_not_there(self, editor: FleetEditor):
        with pytest.raises(RefusedError, match="no link 'warm' any more"):
            editor.removal("warm")

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
    def test_each_link_of_the_examples(self, path: Path, tmp_path: Path):
        copy = tmp_path / "fleet.yaml"
        copy.write_bytes(path.read_bytes())
        editor = FleetEditor(copy)
        for link in editor.links()["links"]:
            change = editor.removal(link["name"])
            assert change.fleet is not None, change.faults
            assert link["name"] not in {left.name for left in change.fleet.links}
            assert len(change.fleet.links) == len(editor.fleet().links) - 1

    def test_a_list_on_one_line(self, tmp_path: Path):
        text = "schema: 1\nmodels: {m: {bundle: b}}\ndevices: {d: {model: m, links: [a, b]}}\nlinks: [LINKS]\n"
        entries = ", ".join(f'{{name: {n}, from: in/{n}, prompt: "x", to: out/{n}}}' for n in "ab")
        (tmp_path / "fleet.yaml").write_text(text.replace("LINKS", entries))
        change = FleetEditor(tmp_path / "fleet.yaml").removal("a")
        assert change.fleet is not None and [link.name for link in change.fleet.links] == ["b"]
