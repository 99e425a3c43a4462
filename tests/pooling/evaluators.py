"""Evaluators of a network as it is, and what they must count."""

import torch

from lpk.networks.flat import Layout
from lpk.pooling.evaluate import Evaluator


def make_evaluator(network, **options):
    layout = Layout.of_model(network)
    made = Evaluator(network, layout, **options)
    made.flat.load(layout.flatten(network.state_dict()))
    return made


def count(network, images, labels):
    with torch.no_grad():
        return int((network.eval()(images).argmax(1) == labels).sum())
