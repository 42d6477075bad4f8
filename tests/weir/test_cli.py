import click
import pytest
from click.testing import CliRunner

from weir.cli import main
from weir.keeping import keeping_options
from xds.operators import Service


def test_help_says_what_weir_is_for():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "LLM servers" in result.output


TLS = ["--tls-cert", __file__, "--tls-key", __file__]
MANAGE = ["--plaintext", "--kubernetes", "--manage-envoyfilters", "--istio-domain", "cluster.local"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plaintext"], "--config DIRECTORY or --kubernetes"),
        (["--plaintext", "--kubernetes", "--config", "."], "--config DIRECTORY or --kubernetes"),
        (["--plaintext", "--config", ".", "--namespace", "ns"], "--namespace goes with"),
        (["--kubernetes", *TLS, "--token-review"], "--audience"),
        (["--kubernetes", *TLS, "--audience", "istio-ca"], "--token-review"),
        (
            ["--kubernetes", *TLS, "--token-review", "--audience", "x", "--tokens", __file__],
            "either",
        ),
        (["--plaintext", "--config", ".", "--manage-envoyfilters"], "goes with --kubernetes"),
        (["--plaintext", "--config", ".", "--no-write-status"], "goes with --kubernetes"),
        (["--plaintext", "--kubernetes", "--manage-envoyfilters"], "--istio-domain"),
        (
            [*MANAGE, "--xds-address", "weir.ns.svc.other:1"],
            "that of --xds-address (other)",
        ),
        ([*MANAGE, "--istio-version", "new"], "--istio-version: 1.32 or 1.32.1"),
        ([*MANAGE, "--peer", "weir"], "--peer: HOST:PORT"),
        (["--plaintext", "--kubernetes", "--peer", "a:1"], "go with --manage-envoyfilters"),
        (["--plaintext", "--kubernetes", "--xds-address", "a:1"], "SERVICE.NAMESPACE.svc"),
    ],
)
def test_serve_says_which_options_go_together(arguments, words):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_serve_writes_status_as_its_own_service_unless_it_is_told_not_to():
    services = []

    @click.command()
    @click.option("--kubernetes", is_flag=True)
    @click.option("--istio-domain")
    @keeping_options
    def command(*, service, **_):
        services.append(service)

    for more in ([], ["--write-status"], ["--no-write-status"]):
        arguments = ["--kubernetes", "--xds-address", "xds.ns.svc.cluster.local:1", *more]
        assert CliRunner().invoke(command, arguments).exit_code == 0
    assert services == [Service("ns", "xds"), Service("ns", "xds"), None]
