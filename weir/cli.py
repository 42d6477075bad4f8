"""The `weir` command: one group, a module a subcommand.

Subcommands are imported when they are asked for: `weir picker` must not pay for what only
`weir serve` needs.
"""

from importlib import import_module

import click

COMMANDS = {
    "annotations": "weir.tuning:command",
    "bench": "weir.bench.command:bench",
    "diff": "weir.status:diff",
    "demo": "weir.demo.command:demo",
    "doctor": "weir.doctor.command:command",
    "envoy-bootstrap": "weir.envoy:command",
    "picker": "weir.picker:command",
    "serve": "weir.serve:command",
    "status": "weir.status:status",
    "istio": "weir.istio.command:istio",
    "inference-sim": "weir.inference_sim.command:inference_sim",
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports them on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="weir", prog_name="weir")
def main() -> None:
    """Inference-aware load balancing for LLM servers behind Envoy and Istio."""
