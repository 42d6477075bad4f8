"""The documents: commands have the flags that they are shown with, YAML is what it should be."""

import fnmatch
import re
import subprocess
from itertools import pairwise

import click
import pytest
import yaml
from click.testing import CliRunner

from tests.documents import Document, commands
from tests.manifests import checks
from tests.manifests.objects import CHART, ROOT
from weir.cli import main
from xds import registry
from xds.istio.keeping import KEPT_BY
from xds.istio.objects import KINDS
from xds.istio.shapes.manifest import GATEWAY, POOL, POOLS, SHAPE, STEP
from xds.istio.shapes.precheck import matrix
from xds.istio.shapes.versions import TIERS, VERSIONS, Verdict
from xds.istio.shapes.wiring import Shape
from xds.manifests import read
from xds.operators import CONTROLLER, IN_EFFECT, WIRED
from xds.security import read_grants
from xds.tuning import KNOBS, PREFIX

DOCUMENTS = [
    Document(path)
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), CHART / "README.md"])
]
EXAMPLES = ROOT / "docs/examples/istio"
GUIDE = Document(ROOT / "docs/istio.md")
WHOLE = [(each, text) for each in DOCUMENTS for _, text in each.blocks]
PLACEHOLDER = re.compile(r"\$?\{?[A-Z][A-Z/_:]*\}?|…")
ANNOTATIONS = {GATEWAY, POOL, POOLS, SHAPE, STEP, CONTROLLER, IN_EFFECT, WIRED, KEPT_BY}
ANNOTATIONS |= {f"{PREFIX}{knob.name}" for knob in KNOBS}


def by_path(document):
    return str(document.path.relative_to(ROOT))


def shown(document):
    """(arguments, whole) of every `weir` in it; in running text a command may leave things out."""
    for _, text in document.blocks:
        yield from ((arguments, True) for arguments in commands(text, "weir"))
    for text in document.spans:
        yield from ((arguments, False) for arguments in commands(text, "weir"))


def wrong(arguments, *, whole):
    """What click would say against these arguments, but for files and addresses."""
    command, names = main, ["weir"]
    context = click.Context(main, info_name="weir")
    arguments = list(arguments)
    while isinstance(command, click.Group):
        if not arguments:
            return ["no subcommand"] if whole else []
        if arguments[0] in ("--version", "--help"):
            return []
        name = arguments.pop(0)
        found = command.get_command(context, name)
        if found is None:
            return [f"{' '.join(names)} has no {name}"]
        command, names = found, [*names, name]
        context = click.Context(command, info_name=name, parent=context)
    if not whole:
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        options = [each.partition("=")[0] for each in arguments if each.startswith("-")]
        return [f"no option {each}" for each in options if each not in known]
    parser = command.make_parser(context)
    try:
        values, rest, _ = parser.parse_args(arguments)
    except click.UsageError as error:
        return [error.format_message()]
    problems = [f"unexpected {each}" for each in rest]
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None or isinstance(value, type(click.core.UNSET)):
            if parameter.required:
                problems.append(f"{parameter.opts[-1]} is missing")
        elif isinstance(parameter.type, (click.Choice, click.IntRange, click.FloatRange)):
            problems += _unfit(parameter, value)
    return problems


def _unfit(parameter, value):
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, str) and not PLACEHOLDER.fullmatch(each):
            try:
                parameter.type.convert(each, parameter, None)
            except click.BadParameter as error:
                yield f"{parameter.opts[-1]}: {error.message}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_every_command_that_is_shown_exists_with_these_options(document):
    problems = [
        f"weir {' '.join(arguments)}: {problem}"
        for arguments, whole in shown(document)
        for problem in wrong(arguments, whole=whole)
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("weir serv --plaintext", "has no serv"),
        ("weir istio manifest ns/p --config have", "weir istio has no manifest"),
        ("kubectl exec x -- weir status --statuss here", "--statuss"),
        ("a | .venv/bin/weir istio manifests --config have", "pool is missing"),
        ("weir picker --listen :9002", "--xds is missing"),
        (
            "weir istio manifests ns/p --config have \\\n  --shape waypoints",
            "'waypoints' is not one",
        ),
        ("weir istio manifests ns/p --config have --step 3 | kubectl apply -f -", "3 is not in"),
        ("weir diff NODE extra", "unexpected extra"),
        ("weir serve --mesh-cert", "requires an argument"),
        ("if true; then weir", "no subcommand"),
    ],
)
def test_a_command_that_does_not_exist_is_found(text, problem):
    (arguments,) = commands(text, "weir")
    assert problem in " ".join(wrong(arguments, whole=True))


def test_commands_are_found_where_a_shell_starts_them():
    text = """\
helm install weir manifests/helm/weir --namespace weir
weir status   # weir is well
for pod in $(weir a); do weir b --x 'y z' > weir; done
weir c & weir d --e=[::]:1 [--f G]
"""
    assert commands(text, "weir") == [
        ["status"],
        ["a"],
        ["b", "--x", "y z"],
        ["c"],
        ["d", "--e=[::]:1", "--f", "G"],
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_every_link_leads_somewhere(document):
    for target in document.links:
        file, _, anchor = target.partition("#")
        path = (document.path.parent / file).resolve() if file else document.path
        assert path.exists(), target
        if anchor:
            assert anchor in Document(path).anchors, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_what_helm_is_told_to_set_are_values_of_the_chart(document):
    schema = (CHART / "values.schema.json").read_text("utf-8")
    for _, text in document.blocks:
        for arguments in commands(text, "helm"):
            if "manifests/helm/weir" in arguments:
                values = _set(arguments)
                assert checks.misspelt(values, schema) == [], values


def _set(arguments):
    """The values of --set, as Helm reads them."""
    values = {}
    for option, said in pairwise(arguments):
        if option != "--set":
            continue
        path, _, value = said.partition("=")
        *parents, last = path.split(".")
        at = values
        for parent in parents:
            at = at.setdefault(parent, {})
        listed = value.startswith("{")
        at[last] = value[1:-1].split(",") if listed else yaml.safe_load(value)
    return values


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_make_has_the_targets_that_are_shown(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [*(text for _, text in document.blocks), *document.spans]
    found = {arguments[0] for text in texts for arguments in commands(text, "make") if arguments}
    assert [each for each in sorted(found) if not fnmatch.filter(targets, each)] == []


def yaml_blocks():
    for document, text in WHOLE:
        first = next((line for line in text.splitlines() if not line.startswith("#")), "")
        if re.match(r"apiVersion: |- \w+: ", first):
            yield pytest.param(text, id=f"{by_path(document)}: {first}")


@pytest.mark.parametrize("text", list(yaml_blocks()))
def test_yaml_is_what_its_schemas_and_our_readers_want(text, tmp_path):
    documents = list(yaml.safe_load_all(text))
    if isinstance(documents[0], list):
        (tmp_path / "grants.yaml").write_text(text)
        assert read_grants(tmp_path / "grants.yaml")
        return
    assert _problems(documents, text) == []


def _problems(documents, source):
    """Our readers know the Gateway API and pools; Kubernetes' and Istio's schemas the rest."""
    manifests = read(source, "shown.yaml", KINDS)
    known = {(each.object.kind, each.object.metadata.name) for each in manifests}
    problems = []
    for each in documents:
        group = each["apiVersion"].rpartition("/")[0]
        if "." in group and group.endswith("networking.k8s.io") and group != "networking.k8s.io":
            if (each["kind"], each["metadata"]["name"]) not in known:
                problems.append(f"{each['kind']} {each['metadata']['name']}: nobody reads it")
        elif "spec" in each or each["kind"] == "Namespace":
            problems += checks.invalid(each)
    return problems


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_the_guides_objects_are_what_their_schemas_want(file):
    text = file.read_text("utf-8")
    documents = list(yaml.safe_load_all(text))
    assert _problems(documents, text) == []
    for each, _, pod in checks.pods(documents):
        assert checks.unrestricted(pod) == [], each["metadata"]["name"]
    assert f"examples/istio/{file.name}" in GUIDE.text


def test_the_guides_model_servers_are_started_with_flags_that_exist():
    documents = yaml.safe_load_all((EXAMPLES / "model-servers.yaml").read_text())
    (deployment,) = [each for each in documents if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert wrong(container["args"], whole=True) == []
    version = (ROOT / "manifests/helm/weir/Chart.yaml").read_text()
    assert container["image"].partition(":")[2] in version


def example(directory, *names):
    """A folder of the guide's objects, as if they had been exported."""
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text((EXAMPLES / name).read_text())
    return directory


def have(shape, directory):
    more = ["gateway.yaml"] if shape.on_gateway else []
    return example(directory, "model-servers.yaml", "pool.yaml", *more)


def run(*arguments):
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def manifests(shape, directory, *more):
    return run(
        *("istio", "manifests", "llm/llama", "--config", directory, "--shape", shape.value),
        *("--istio-version", "1.32", "--picker", "weir-picker.weir.svc.cluster.local:9002"),
        *more,
    )


@pytest.mark.parametrize("shape", Shape)
def test_the_guides_objects_are_wired_by_every_shape_and_taken_out_again(shape, tmp_path):
    directory = have(shape, tmp_path / "have")
    printed = manifests(shape, directory)
    steps = [manifests(shape, directory, "--step", step) for step in (1, 2)]
    assert printed == "---\n".join(steps)
    (directory / "step-1.yaml").write_text(steps[0])
    assert manifests(shape, directory, "--step", 2) == steps[1]  # when the first is there
    (directory / "step-1.yaml").unlink()
    objects = list(yaml.safe_load_all(printed))
    assert {each["metadata"]["namespace"] for each in objects} == {"llm"}
    assert _problems([each for each in objects if each["kind"] != "EnvoyFilter"], printed) == []
    assert "outbound|9002||weir-picker.weir.svc.cluster.local" in printed
    (directory / "weir.yaml").write_text(printed)
    deleted = re.findall(
        r"^kubectl delete (\w+) -n llm (\S+)$",
        run("istio", "uninstall", "--dry-run", "llm/llama", "--config", directory),
        re.MULTILINE,
    )
    made = [(each["kind"].lower(), each["metadata"]["name"]) for each in objects]
    assert sorted(deleted) == sorted(made)


def test_the_guides_pool_is_one_that_weir_serves():
    texts = [(EXAMPLES / name).read_text() for name in ("model-servers.yaml", "pool.yaml")]
    pools = registry.pools(read("\n---\n".join(texts), "example.yaml"))
    assert list(pools) == ["llm/llama"]


def test_the_guides_commands_are_shell():
    for _, text in GUIDE.blocks:
        if not text.startswith("┃"):
            subprocess.run(["sh", "-n"], check=True, input=text, text=True)


def outputs(start):
    """Blocks of the guide that show what a command prints."""
    return [text for _, text in GUIDE.blocks if text.startswith(start)]


def test_the_guide_shows_what_the_commands_print(tmp_path):
    shape = Shape.WAYPOINT_SECOND_SERVICE
    directory = have(shape, tmp_path / "have")
    printed = manifests(shape, directory)
    (head,) = outputs("# Made by")
    assert printed.startswith(head)
    names = {each["metadata"]["name"] for each in yaml.safe_load_all(printed)}
    assert all(f"`{name}`" in GUIDE.text for name in names)
    (directory / "weir.yaml").write_text(printed)
    removal = run("istio", "uninstall", "--dry-run", "llm/llama", "--config", directory)
    assert outputs("# Gateway") == [removal]


def table():
    """The matrix as the guide should have it."""
    evidence = {
        version: {cell.evidence for row in matrix(version).values() for cell in row.values()}
        - ({"read"} if version == VERSIONS[-1] else set())  # what it refuses is read
        for version in VERSIONS
    }
    heads = [f"{version} ({', '.join(evidence[version])})" for version in VERSIONS]
    rows = [["shape", *heads], ["---"] * (len(heads) + 1)]
    rows += [[f"`{shape.value}`", *(_cell(shape, each) for each in VERSIONS)] for shape in Shape]
    return "\n".join(f"|{'|'.join(_padded(cell) for cell in row)}|" for row in rows)


def _padded(cell):
    return cell if cell == "---" else f" {cell} "


def _cell(shape, version):
    row = matrix(version)[shape]
    verdicts = {tier: row[tier].verdict for tier in TIERS}
    if len(set(verdicts.values())) == 1:
        return verdicts[TIERS[0]].value
    return ", ".join(
        f"{tier.value} {verdict.value}"
        for tier, verdict in verdicts.items()
        if verdict is not Verdict.YES
    )


def test_the_guides_matrix_is_what_precheck_says():
    _, _, rest = GUIDE.text.partition("<!-- held to `weir istio precheck` by a test -->")
    shown, _, _ = rest.partition("<!-- end -->")
    head, _, reasons = shown.strip().partition("\n\n")
    assert head == table()
    whys = {
        cell.why
        for version in VERSIONS
        for row in matrix(version).values()
        for cell in row.values()
        if cell.why
    }
    assert {" ".join(each.split()) for each in f"\n{reasons}".split("\n- ")[1:]} == whys


def test_the_checks_that_the_guide_names_are_the_doctors():
    source = "".join(
        file.read_text("utf-8") for file in sorted((ROOT / "weir/doctor").glob("*.py"))
    )
    _, _, rest = GUIDE.text.partition("## Troubleshooting")
    rows, _, _ = rest.partition("\n## ")
    names = set(re.findall(r"\*\*(\w+)\*\*", rows))
    assert names
    assert {name for name in names if f'"{name}"' not in source} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_path)
def test_annotations_and_metrics_that_are_named_exist(document):
    source = "".join(
        file.read_text("utf-8")
        for package in ("weir", "xds", "picker")
        for file in sorted((ROOT / package).rglob("*.py"))
        if "proto" not in file.parts
    )
    assert set(re.findall(r"\bweir\.dev/[A-Za-z-]*[A-Za-z]", document.text)) <= ANNOTATIONS
    metrics = set(re.findall(r"\bweir_[a-z_]+", document.text))
    assert {each for each in metrics if each.removesuffix("_total") not in source} == set()
