from click.testing import CliRunner

from weir.cli import main


def test_help_says_what_weir_is_for():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "LLM servers" in result.output
