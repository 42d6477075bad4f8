"""What one simulated model server is told at its start."""

from dataclasses import dataclass, field

from weir.inference_sim.engine import EngineConfig


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One model server; the names are vLLM's options where it has them."""

    model: str = "sim"
    adapters: tuple[str, ...] = ()
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_model_len: int = 32_768  # tokens of prompt and answer
    max_num_queued_reqs: int | None = None
    stream_interval: int = 1  # tokens an event, after the first
    seed: int = 0
    created: int | None = None  # Unix seconds that answers carry; None: the time of day

    def __post_init__(self) -> None:
        if self.max_model_len > self.engine.capacity_tokens:
            raise ValueError(
                f"max_model_len ({self.max_model_len} tokens) does not fit into the cache "
                f"({self.engine.capacity_tokens}): lower it, or raise the number of blocks"
            )
        if self.max_model_len < 2 or self.stream_interval < 1:
            raise ValueError("max_model_len must be at least 2, stream_interval at least 1")
        if self.adapters and not self.engine.max_loras:
            raise ValueError("adapters need max_loras of at least 1")
        if self.model in self.adapters or len(set(self.adapters)) != len(self.adapters):
            raise ValueError("the names of model and adapters must differ")
