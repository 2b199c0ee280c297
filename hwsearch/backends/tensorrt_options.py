"""What a target's ``options`` may say to TensorRT, checked and with defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwsearch.errors import ConfigError, did_you_mean

_SWITCH = {"on": True, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOptions:
    """How engines are built and timed; part of the device fingerprint.

    Attributes:
        cuda_graph: Launch an inference as one captured graph instead of kernel by kernel.
        transfers: Time copying the input to the GPU and the output back as well.
        workspace_mb: Most memory a kernel may take beside its tensors.
    """

    cuda_graph: bool = True
    transfers: bool = False
    workspace_mb: int = 4096

    def facts(self) -> dict[str, str]:
        """The options as a fingerprint has them."""
        return {
            "cuda_graph": "on" if self.cuda_graph else "off",
            "transfers": "timed" if self.transfers else "not timed",
            "workspace_mb": str(self.workspace_mb),
        }


def read_options(options: Mapping[str, str]) -> TensorRtOptions:
    """The options of a target's profile.

    Raises:
        ConfigError: an unknown option, or a value it cannot have.
    """
    allowed = ("cuda_graph", "transfers", "workspace_mb")
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"TensorRT has no option `{name}`", allowed=", ".join(allowed), hint=did_you_mean(name, allowed)
            )
    workspace = str(options.get("workspace_mb", 4096))
    if not workspace.isdigit() or int(workspace) == 0:
        raise ConfigError(f"workspace_mb = {workspace}", allowed="a number of megabytes, 1 or more")
    return TensorRtOptions(
        cuda_graph=_switch("cuda_graph", options, default=True),
        transfers=_switch("transfers", options, default=False),
        workspace_mb=int(workspace),
    )


def _switch(name: str, options: Mapping[str, str], *, default: bool) -> bool:
    value = options.get(name, default)
    if isinstance(value, bool):  # YAML reads a bare on or off as one
        return value
    if value not in _SWITCH:
        raise ConfigError(f"{name} = {value}", allowed=", ".join(_SWITCH))
    return _SWITCH[value]
