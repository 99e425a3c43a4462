"""lpk.report: the test scores of anybody's tickets and pools, by accuracy or by a metric, on a page."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import lpk
from lpk.networks.flat import Layout
from lpk.pooling.accuracy import correct_predictions
from lpk.reporting.results import Results, method_of
from tests.conftest import make_images, make_network


@pytest.fixture(scope="module")
def test_samples():
    return make_images(150, seed=9)


@pytest.fixture(scope="module")
def pools(tickets, validation, calibration):
    options = {"model": make_network(), "validation": validation, "calibration": calibration, "progress": False}
    some = {"candidates": 1, **options}
    return [
        *(lpk.pool(tickets, target, **some) for target in (1, 4)),
        lpk.pool(tickets, 4, criterion="loss", **some),
        lpk.pool(tickets, 4, method="swa", **some),
    ]


def loss(model):
    """Minus the cross-entropy of each sample."""
    images, labels = make_images(150, seed=9)
    return -torch.nn.functional.cross_entropy(model(images), labels, reduction="none")


def mean_loss(model):
    return loss(model).mean()


def test_a_report_of_a_store(tickets, pools, test_samples, tmp_path):
    tickets.save(tmp_path / "run")
    model = make_network()
    results = lpk.report(tmp_path / "run", tmp_path / "run", pools, model=model, test=test_samples, progress=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"report.html", "results.json", "accuracy.svg"}
    assert results == Results.read(tmp_path / "run" / "results.json")
    assert results["methods"] == ["interpolation", "interpolation-loss", "swa"]
    assert [sorted(row["pools"]) for row in results["rows"]][:2] == [[], ["interpolation"]]
    for row, ticket in zip(results["rows"], tickets, strict=True):
        model.load_state_dict(ticket.state_dict)
        assert row["ticket"] == float(correct_predictions(model, test_samples).double().mean())
    for pooled in pools:
        model.load_state_dict(pooled.state_dict)
        pool = results["rows"][pooled.round]["pools"][method_of(pooled)]
        assert pool["accuracy"] == float(correct_predictions(model, test_samples).double().mean())
        assert pool["gain"]["gain"] == pytest.approx(pool["accuracy"] - results["rows"][pooled.round]["ticket"])
        assert pool["gain"]["low"] <= pool["gain"]["gain"] <= pool["gain"]["high"]
        assert (pool["validation_unit"], pool["validation_samples"]) == ("%", 203)
    assert results["metric"] == {"name": "accuracy", "unit": "%", "samples": 150}
    text, page = str(results), (tmp_path / "run" / "report.html").read_text()
    best = f"{100 * results['rows'][4]['pools']['interpolation']['accuracy']:.2f}"
    assert best in text and best in page and best in results._repr_html_()
    assert "Sequential" in page and "The pool (interpolation)" in text and "<script" not in results._repr_html_()


def test_a_metric_is_shown_in_plain_numbers(tickets, pools, tmp_path):
    results = lpk.report(
        tmp_path / "loss.html",
        tickets,
        {"mine": [pools[0], pools[3]]},
        model=make_network(),
        metric=loss,
        progress=False,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["loss.html"]
    assert results["metric"] == {"name": "loss", "unit": "", "samples": 150}
    text, page = str(results), (tmp_path / "loss.html").read_text()
    for row in results["rows"]:
        assert -1 < row["ticket"] < 0 and f"{row['ticket']:.4f}" in text
    gain = results["rows"][4]["pools"]["mine"]["gain"]
    assert gain["low"] < gain["gain"] < gain["high"]
    assert "test loss, gain over the ticket (the first with its 95% interval)" in text
    for shown in (text, page):
        shown = re.sub(r"one standard error \(.*? points\)", "", shown)  # of the validation accuracy
        assert "points" not in shown and "test accuracy" not in shown.lower()
    assert "test loss" in page and "Test loss" in page


def test_one_number_for_each_network_has_no_interval(tickets, pools, tmp_path):
    results = lpk.report(
        tmp_path, tickets, pools[0], model=make_network(), metric=mean_loss, unit=" nat", title="Mine", progress=False
    )
    pool = Results.read(tmp_path / "results.json")["rows"][1]["pools"]["interpolation"]
    assert pool["gain"]["low"] is None and pool["gain"]["gain"] == pytest.approx(
        pool["accuracy"] - results["rows"][1]["ticket"]
    )
    text = str(results)
    assert "test mean loss in nat, gain over the ticket\n" in text and "interval lies" not in text
    assert "no interval" in text and " nat at density" in text
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Mine</h1>" in page and "95% interval" not in page


def test_pools_that_were_picked_by_a_function_show_its_scores(tickets, tmp_path, test_samples):
    pooled = lpk.pool(
        tickets,
        3,
        model=make_network(),
        evaluate=lambda model: 5 * float(mean_loss(model)),
        statistics="interpolate",
        candidates=1,
        progress=False,
    )
    results = lpk.report(tmp_path, tickets, [pooled], model=make_network(), test=test_samples, progress=False)
    pool = results["rows"][3]["pools"]["interpolation"]
    assert (pool["validation_unit"], pool["validation_samples"]) == ("", None)
    page = (tmp_path / "report.html").read_text()
    assert f"Validation score: {pooled.baseline_accuracy:.4g} before, {pooled.accuracy:.4g} after." in page


def test_only_reports_are_replaced(tickets, test_samples, tmp_path):
    options = {"model": make_network(), "test": test_samples, "progress": False}
    for name in ("results.json", "report.html", "accuracy.svg"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(ValueError, match=f"holds {name}, and no report of lpk; use another directory"):
            lpk.report(tmp_path, tickets, **options)
        assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "{}"
        (tmp_path / name).unlink()
    for title in ("first", "second"):
        lpk.report(tmp_path, tickets, title=title, **options)
    assert json.loads((tmp_path / "results.json").read_text())["title"] == "second"
    assert "<h1>second</h1>" in (tmp_path / "report.html").read_text()


def test_pools_that_do_not_fit_are_named(tickets, pools, test_samples, tmp_path):
    options = {"model": make_network(), "test": test_samples, "progress": False}
    renamed = {f"other.{name}": x for name, x in pools[0].state_dict.items()}
    layout = Layout.of(renamed, [f"other.{name}" for name in tickets.layout.prunable])
    assert layout.n == tickets.layout.n
    for asked, some, message in (
        (tickets, replace(pools[0], layout=layout), "round 1 by interpolation is of another network than the tickets"),
        (tickets, [pools[0], pools[0]], "two networks of round 1 by interpolation; a mapping gives each a name"),
        (tickets[:3], pools[1], "one of round 4; the tickets are of rounds 0 to 2"),
        (tickets[1:], pools[0], "round 1 by interpolation keeps .*: it was pooled from other tickets"),
    ):
        with pytest.raises(ValueError, match=message):
            lpk.report(tmp_path / "x", asked, some, **options)
    assert not (tmp_path / "x").exists()


def test_the_mean_is_over_the_targets_of_a_method(tickets, pools, test_samples, tmp_path):
    results = lpk.report(tmp_path, tickets, pools, model=make_network(), test=test_samples, progress=False)
    mean = results["mean"]["pools"]["interpolation"]
    rows = [results["rows"][i] for i in (1, 4)]
    assert mean["accuracy"] == pytest.approx(sum(r["pools"]["interpolation"]["accuracy"] for r in rows) / 2)
    assert mean["gain"]["gain"] == pytest.approx(mean["accuracy"] - sum(r["ticket"] for r in rows) / 2)
    number = lpk.report(tmp_path, tickets, pools, model=make_network(), metric=mean_loss, progress=False)
    each = [number["rows"][i]["pools"]["interpolation"]["gain"]["gain"] for i in (1, 4)]
    assert number["mean"]["pools"]["interpolation"]["gain"]["gain"] == pytest.approx(math.fsum(each) / 2)


def test_a_pool_is_called_by_its_method_criterion_and_pruning():
    settings = {"method": "swa", "criterion": "loss", "prune": "after"}
    assert method_of(SimpleNamespace(settings=settings)) == "swa-loss-after"
