"""What the types of lpk's face say: mypy reads this (`make lint`), nobody runs it."""

from pathlib import Path
from typing import assert_type

from torch import nn

import lpk


def pool_is_typed_by_its_target(tickets: lpk.Tickets, model: nn.Module) -> None:
    assert_type(lpk.pool(tickets, 7, model=model), lpk.Pooled)
    assert_type(lpk.pool(Path("run"), target=7, model=model, progress=False), lpk.Pooled)
    assert_type(lpk.pool("run", model=model), list[lpk.Pooled])
    assert_type(lpk.pool([tickets[0]], None, model=model), list[lpk.Pooled])
