"""``hwsearch zoo``: what it lists, what it measures."""

import json

import pytest

from hwsearch.cli.main import main


def document(capsys, *arguments):
    assert main(["zoo", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_lists_every_network_with_what_a_study_calls_it(capsys):
    found = document(capsys)
    entries = {entry["name"]: entry for entry in found["networks"]}
    assert found["target"] is None
    assert entries["mobilenet_v2-224"] == {
        "name": "mobilenet_v2-224",
        "factory": "hwsearch.zoo.mobilenet_v2:mobilenet_v2",
        "arguments": {"classes": 1000, "small": False},
        "input_shape": [3, 224, 224],
        "params": 3_504_872,
        "macs": 300_774_272,
        "latency": {},
    }


def test_the_table_shows_the_networks_asked_for(capsys):
    assert main(["zoo", "squeezenet", "vit_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["network", "squeezenet", "vit_tiny"]
    assert lines[1].split()[1:] == ["hwsearch.zoo.squeezenet:squeezenet", "3x32x32", "0.73", "23.5"]


def test_an_unknown_network_is_a_usage_error(capsys):
    assert main(["zoo", "squeeznet"]) == 2
    assert "did you mean `squeezenet`?" in capsys.readouterr().err


@pytest.mark.slow
def test_it_measures_both_precisions(capsys):
    (entry,) = document(capsys, "squeezenet", "--measure")["networks"]
    assert set(entry["latency"]) == {"fp32", "int8"}
    assert all(latency["source"] == "measured" and latency["best_ms"] > 0 for latency in entry["latency"].values())
