"""The `weir` command: one group, a module a subcommand."""

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="weir", prog_name="weir")
def main() -> None:
    """Inference-aware load balancing for LLM servers behind Envoy and Istio."""
