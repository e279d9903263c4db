"""The page of a repository says what was measured, and how."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rrmsdk.hub.papers import PAPERS
from rrmsdk.hub.readme import render
from rrmsdk.schema.card import Origin, Pinned
from rrmsdk.schema.data import ExtraInfo
from rrmsdk.schema.report import UPPER_BOUND
from tests.bundles import DIGITS, make_bundle


def test_the_head_is_what_the_hub_reads(tmp_path: Path) -> None:
    teacher = Pinned(ref="hub:resnet18-linf", weights_sha256="1" * 64)
    page = ModelCard(render(make_bundle(tmp_path, teachers=(teacher,)), "acme/tiny"))
    head = page.data.to_dict()
    assert (head["library_name"], head["license"], head["pipeline_tag"]) == (
        "rrmsdk",
        "apache-2.0",
        "image-classification",
    )
    assert head["tags"] == ["rrmsdk", "adversarial-robustness", "linf", "eps-1-10", "knowledge-distillation"]


def test_the_figures_are_in_the_model_index(tmp_path: Path) -> None:
    results = ModelCard(render(make_bundle(tmp_path), "acme/tiny")).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [("accuracy", 0.9), ("accuracy", 0.7)]
    assert results[1].metric_args == {"attack": "autoattack", "norm": "linf", "eps": "1/10", "images": 10}


def test_the_figures_follow_the_line_that_says_what_they_are(tmp_path: Path) -> None:
    section = render(make_bundle(tmp_path), "acme/tiny").split("## Robustness\n\n")[1]
    assert section.splitlines()[0] == UPPER_BOUND
    assert "| apgd-ce | 9 | 2 | 0.7000 |" in section


def test_a_bundle_that_was_not_attacked_claims_nothing(tmp_path: Path) -> None:
    page = render(make_bundle(tmp_path, attacked=False), "acme/tiny")
    assert "It has not been attacked yet" in page
    assert "model-index" not in page


def test_a_licence_the_hub_does_not_know_is_named(tmp_path: Path) -> None:
    head = ModelCard(render(make_bundle(tmp_path, licence="acme-internal"), "acme/tiny")).data.to_dict()
    assert (head["license"], head["license_name"]) == ("other", "acme-internal")


def test_the_same_bundle_gives_the_same_page(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert render(bundle, "acme/tiny") == render(bundle, "acme/tiny")


def test_the_page_says_how_to_use_and_who_taught(tmp_path: Path) -> None:
    teacher = Pinned(ref="hub:acme/big", revision="a" * 40, weights_sha256="1" * 64)
    page = render(make_bundle(tmp_path, teachers=(teacher,)), "acme/tiny")
    assert 'rrmsdk.load("hub:acme/tiny")' in page
    assert f"Teacher: `hub:acme/big` at commit `{'a' * 40}`" in page


def test_the_hub_is_told_which_repository_taught_it(tmp_path: Path) -> None:
    teachers = tuple(Pinned(ref=ref, weights_sha256="1" * 64) for ref in ("hub:acme/big@v2", "hub:resnet18-linf"))
    head = ModelCard(render(make_bundle(tmp_path, teachers=teachers), "acme/tiny")).data.to_dict()
    assert head["base_model"] == ["acme/big"]


def test_the_hub_is_told_where_a_teacher_that_is_a_name_was_pulled_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RRMSDK_HUB_ORG", "acme")
    names = ("hub:imagenet-resnet50-linf-4", "hub:our-own", "hub:our-own@v2")
    teachers = tuple(Pinned(ref=ref, revision="a" * 40, weights_sha256="1" * 64) for ref in names)
    head = ModelCard(render(make_bundle(tmp_path, teachers=teachers), "acme/tiny")).data.to_dict()
    assert head["base_model"] == ["madrylab/robust-imagenet-models", "acme/our-own"]


def test_the_page_cites_the_method_and_the_attack(tmp_path: Path) -> None:
    thanks = render(make_bundle(tmp_path, method={"name": "rrm"}), "acme/tiny").split("## Cite")[1]
    assert "arXiv:2202.09994" in thanks
    assert "arXiv:2003.01690" in thanks


def test_the_page_of_somebody_elses_weights_says_whose_bytes_they_are(tmp_path: Path) -> None:
    origin = Origin(repo="acme/theirs", file="net.pt", commit="c" * 40, sha256="5" * 64)
    method = {"name": "external", "paper": "Doe 2024"}
    page = render(make_bundle(tmp_path, origin=origin, method=method), "acme/tiny")
    assert f"`net.pt` of `acme/theirs` at commit `{'c' * 40}`, sha256 `{'5' * 64}`" in page
    assert "Doe 2024" in page.split("## Cite")[1]


def test_the_page_says_what_the_figures_do_not(tmp_path: Path) -> None:
    limits = render(make_bundle(tmp_path), "acme/tiny").split("## Limits")[1].split("##")[0]
    assert "one threat: linf:1/10" in limits
    assert "10 of the 360 test images" in limits


def test_every_method_that_trains_has_its_paper() -> None:
    pytest.importorskip("torch")
    from rrmsdk import methods

    assert set(methods.KINDS) - {"natural"} <= set(PAPERS)


def test_extra_images_are_named_with_their_share(tmp_path: Path) -> None:
    extra = ExtraInfo(name="path:generated", ratio=0.7, images=1000, fingerprint="1" * 64)
    page = render(make_bundle(tmp_path, data=DIGITS.model_copy(update={"extra": extra})), "acme/tiny")
    assert "trained on digits and 1000 images of path:generated (70% of each batch) by `pgd_at`" in page
