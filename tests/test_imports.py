"""What imports what: the four packages point one way, and the device takes nothing that it does not need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["toolkit", "converters", "boards", "stonechat", "device_runtime"]  # each may import those to its right
COMMAND_LINE = ("toolkit.cli.", "toolkit.__main__.")  # what parses flags and prints: its commands, and `-m toolkit`
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)
# What `pip install stonechat` brings, and serial and cobs of the extra `bridge`: device_runtime and boards may import
# nothing else.
LATER_PYTHON = {"_sha2"}  # modules of its own that the one here may not have yet
DEVICE_DEPENDENCIES = {
    "numpy", "ai_edge_litert", "tflite_runtime", "tflite_micro", "tokenizers", "sentencepiece", "jinja2", "paho",
    "yaml", "llguidance", "simpleeval", "serial", "cobs",
    "cryptography",  # of the extra `sign`, to check signatures; imported where it is used
}  # fmt: skip


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(module: str) -> list[tuple[str, int]]:
    """Every module that is imported anywhere in a file, also inside of functions, or what of it, and the line."""
    found = []
    for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; write the package's name"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                found.append((str(argument.value), node.lineno))
    return found


def test_there_are_modules_of_every_package() -> None:
    assert {module.split(".")[0] for module in MODULES} == set(PACKAGES)
    assert len(MODULES) > 50


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    own = PACKAGES.index(module.split(".")[0])
    for name, line in imported(module):
        package = name.split(".")[0]
        if package in PACKAGES:
            assert PACKAGES.index(package) >= own, f"{module}:{line} imports {name}"
        assert package not in ("tests", "benchmarks", "examples"), f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if not f"{m}.".startswith(COMMAND_LINE)])
def test_what_commands_need_does_not_need_the_command_line(module: str) -> None:
    for name, line in imported(module):
        assert not f"{name}.".startswith(COMMAND_LINE), f"{module}:{line} imports {name}, which is for commands alone"


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in ("device_runtime", "boards")])
def test_the_device_needs_only_what_it_installs(module: str) -> None:
    for name, line in imported(module):
        package = name.split(".")[0]
        if package not in PACKAGES and package not in {*sys.stdlib_module_names, *LATER_PYTHON}:
            assert package in DEVICE_DEPENDENCIES, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("toolkit.device")])
def test_what_runs_on_a_board_needs_device_runtime_and_boards_only(module: str) -> None:
    for name, line in imported(module):
        if name.split(".")[0] in ("toolkit", "converters"):
            assert name.startswith("toolkit.device."), f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("toolkit.bridge")])
def test_a_bridge_brings_models_onto_its_board_and_converts_none(module: str) -> None:
    allowed = ("toolkit.bridge.", "toolkit.device.", "toolkit.firmware.", "toolkit.flash.")
    for name, line in imported(module):
        if name.split(".")[0] in ("toolkit", "converters"):
            assert name.startswith(allowed), f"{module}:{line} imports {name}"


@pytest.mark.parametrize("command", ["serve", "bridge", "slots"])
def test_a_command_of_a_board_takes_what_it_does_from_its_own_folder(command: str) -> None:
    folder = "toolkit.bridge." if command == "bridge" else "toolkit.device."
    allowed = (folder, "toolkit.device.service", "toolkit.cli.options", "toolkit.cli.output")
    for name, line in imported(f"toolkit.cli.{command}"):
        if name.split(".")[0] in ("toolkit", "converters"):
            assert name.startswith(allowed), f"toolkit.cli.{command}:{line} imports {name}"


def loaded_by(statement: str) -> set[str]:
    """The top-level packages in sys.modules after a statement in a new process."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_engine_starts_without_what_it_does_not_need_yet() -> None:
    """Start-up time on a small board is import time: each of these costs from 20 to 200 ms on a desk machine."""
    lazy = {"gguf", "jinja2", "tqdm", "paho", "yaml", "ai_edge_litert", "tokenizers", "sentencepiece", "flatbuffers"}
    loaded = loaded_by("import device_runtime.engine.language_model, device_runtime.engine.backends.native")
    assert "numpy" in loaded
    assert not loaded & (lazy | {"converters", "boards", "toolkit"})
    assert "_hashlib" not in loaded, "OpenSSL's library is 3 MB of a process that answers"


def test_a_command_that_answers_from_a_folder_starts_without_openssl() -> None:
    """Also for messages: Jinja wants a hash of it."""
    module = "toolkit.packed"
    code = f"from pathlib import Path\nfrom {module} import as_folder\nwith as_folder(Path('.')): pass"
    models = "import device_runtime.engine.encoder.encoder_model, device_runtime.engine.language_model"
    template = "from device_runtime.engine.chat import render_chat\n"
    template += "assert render_chat('{{ messages[0].content }}', [{'role': 'user', 'content': 'hello'}], {}) == 'hello'"
    loaded = loaded_by(f"import toolkit.cli.run\n{models}\n{code}\n{template}")
    assert "jinja2" in loaded
    assert not loaded & {"_hashlib", "hashlib"}


def test_a_graph_begins_to_open_before_numpy_and_without_what_answers_need() -> None:
    """LiteRT opens it in a thread meanwhile; each of these would have it wait."""
    loaded = loaded_by("import device_runtime.engine.opening, device_runtime.engine.backends.compiled_model")
    assert not loaded & {"numpy", "jinja2", "tokenizers", "yaml", "zipfile", "tempfile", "logging", "difflib", "random"}
    assert not loaded & {"_hashlib", "hashlib", "asyncio", "subprocess", "boards", "toolkit", "converters"}


def test_a_measuring_process_loads_no_more_than_one_that_answers() -> None:
    loaded = loaded_by("import toolkit.bench, device_runtime.engine.opening")
    assert not loaded & {"numpy", "statistics", "subprocess", "argparse", "boards", "yaml"}


def test_no_yaml_is_read_where_no_device_tree_says_which_board_this_is() -> None:
    loaded = loaded_by(
        "from pathlib import Path\nfrom boards import detect\ndetect._COMPATIBLE = Path('/nowhere')\n"
        "assert detect.detect_here() is None"
    )
    assert "boards" in loaded
    assert "yaml" not in loaded


def test_the_command_line_shows_its_help_without_numpy() -> None:
    loaded = loaded_by("from toolkit.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass")
    assert not loaded & {"numpy", "yaml", "paho", "jinja2", "tqdm", "converters", "boards"}


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__main__")])
def test_public_names_exist(module: str) -> None:
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in PACKAGES:
            raise
        pytest.skip(f"{error.name} is not installed")
    names = getattr(loaded, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert hasattr(loaded, name), f"{module}.__all__ has {name!r}, which does not exist"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if source(m).stat().st_size > 200 and not m.endswith("__main__")]
)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(source(module).read_text(encoding="utf-8")))


def test_the_errors_are_one_tree_and_the_drawing_of_it_is_true() -> None:
    """Names, nesting, built-in bases and exit codes in the docstring of errors.py are those of the classes."""
    from device_runtime import errors

    drawn, above = {}, ["StonechatError"]
    line = re.compile(r"^    ([│ ]*[├└]── )(\w+)(?: \((\w+)\))? +(\d)", re.MULTILINE)
    for bars, name, built_in, code in line.findall(errors.__doc__ or ""):
        depth = len(bars) // 4
        above[depth:] = [name]
        drawn[name] = ([above[depth - 1], *([built_in] if built_in else [])], int(code))
    classes = {name: getattr(errors, name) for name in errors.__all__ if name != "StonechatError"}
    assert drawn == {name: ([base.__name__ for base in cls.__bases__], cls.exit_code) for name, cls in classes.items()}


@pytest.mark.parametrize("module", MODULES)
def test_there_is_no_error_outside_of_the_tree(module: str) -> None:
    """A class that is raised is in errors.py; one that begins with _ does not leave its module."""
    if module == "device_runtime.errors":
        return
    for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for base in map(ast.unparse, node.bases):
                assert not base.endswith(("Error", "Exception")), f"{module}:{node.lineno} defines {node.name}({base})"


def test_what_an_error_knows_is_in_its_attributes() -> None:
    from device_runtime.errors import ContextOverflowError, UnreachableError

    error = ContextOverflowError("too long", tokens=300, context=256)
    assert error.fields == {"tokens": 300, "context": 256}
    assert UnreachableError("busy").fields == {}


def test_the_public_names_are_these() -> None:
    """What applications import; a name that goes from this list breaks them."""
    import stonechat

    assert stonechat.__all__ == [
        "BackendError", "BackendMissingError", "BrokerAddress", "Bundle", "BundleError", "Certificates",
        "Classification", "Completion", "ConfigurationError", "ContextOverflowError", "DoesNotFitError", "EncoderModel",
        "Final", "Generation", "IncompleteError", "LanguageModel", "Markup", "RemoteAnswer", "RemoteModel", "Sampling",
        "SchemaError", "SignatureError", "StonechatError", "Translator", "TrustStore", "UnavailableError",
        "UnreachableError", "__version__",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="it has BackendError"):
        stonechat.Langauge_model  # noqa: B018


def test_importing_stonechat_loads_nothing_before_it_is_used() -> None:
    assert not loaded_by("import stonechat") & {"numpy", "paho", "device_runtime"}
    assert "paho" not in loaded_by("from stonechat import LanguageModel")
    assert "numpy" not in loaded_by("from stonechat import StonechatError")
    assert "numpy" in loaded_by("from device_runtime.engine import LanguageModel")
    assert "numpy" not in loaded_by("import device_runtime.engine.chat")


def test_each_public_name_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    import stonechat

    for name in stonechat.__all__:
        assert f"`{name}`" in page, f"docs/reference/python.md does not describe {name}"
