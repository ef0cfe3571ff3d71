"""Which modules one worker of pytest-xdist runs, for they share a process that takes seconds to start."""

from __future__ import annotations

from typing import Any

import pytest

MODULES = {
    "the template": ("engine", "network", "kernel_warmup", "robust", "weights"),
    "the programs' process": (
        "device_faults", "dummy_weights", "fields", "first_build", "forms", "graphs", "quarantine", "rank_groups",
        "scarce",
    ),
}  # fmt: skip
SHARED = {f"tests/sglang/test_{name}.py": shared for shared, names in MODULES.items() for name in names}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        """A whole module at a time."""

        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return SHARED.get(module, module)

    return ByWhatIsShared(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """SGLang's come first: they take longest."""
    items.sort(key=lambda item: "sglang" not in item.path.parts)
