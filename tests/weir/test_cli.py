import pytest
from click.testing import CliRunner

from weir.cli import main


def test_help_says_what_weir_is_for():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "LLM servers" in result.output


TLS = ["--tls-cert", __file__, "--tls-key", __file__]


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
    ],
)
def test_serve_says_which_options_go_together(arguments, words):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert words in result.output
