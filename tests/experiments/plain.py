"""References in plain PyTorch, and what an experiment left."""

import copy
import json
from pathlib import Path

import torch
from torch.optim.swa_utils import update_bn

from lpk.experiments.study import Study
from lpk.run import Run
from lpk.tickets.tickets import Tickets

SEEDS = (0, 1)
ROUNDS = range(4)


def results(study: Study, name: str) -> dict:
    return json.loads((study.out / name / "results.json").read_text())


class Plain:
    """A seed's tickets and samples, for references in plain PyTorch."""

    def __init__(self, study: Study, directory: str) -> None:
        self.tickets = Tickets.load(study.out / directory)
        with Run.open(study.out / directory) as run:
            self.model = run.model()
            self.test = run.data.test.tensors()
            self.calibration = run.calibration().tensors()[0]

    def logits(self, state: dict) -> torch.Tensor:
        self.model.load_state_dict(state)
        with torch.no_grad():
            return self.model.eval()(self.test[0])

    def accuracy(self, state: dict) -> float:
        return float((self.logits(state).argmax(1) == self.test[1]).double().mean())

    def mixed(self, first: int, second: int, alpha: float, keep: int | None) -> dict:
        """α·first + (1 − α)·second as state dicts, pruned globally, BatchNorm's statistics renewed by update_bn."""
        a, b = self.tickets[first].state_dict, self.tickets[second].state_dict
        state = {n: alpha * a[n] + (1 - alpha) * b[n] if a[n].is_floating_point() else a[n] for n in a}
        names = self.tickets.layout.prunable
        if keep is not None:
            magnitudes = torch.cat([state[n].abs().flatten() for n in names])
            threshold = magnitudes.sort(descending=True).values[keep - 1]
            for n in names:
                state[n] = torch.where(state[n].abs() >= threshold, state[n], 0.0)
        return self.renewed(state)

    def renewed(self, state: dict) -> dict:
        """With BatchNorm's statistics renewed by update_bn."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(state)
        update_bn(self.calibration.split(100), model)
        return model.state_dict()


def modified(directory: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}
