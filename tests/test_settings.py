"""One dataclass is the command line is a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import types
import typing

import pytest
import torch
import yaml

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast import methods
from amkd_fast.distill import build, cli, options
from amkd_fast.distill import data as datasets
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import METHODS, USUAL, CompareSettings, Settings, TrainSettings, choices

KINDS = (TrainSettings, CompareSettings)
LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@functools.cache
def parser_of(kind):
    parser = argparse.ArgumentParser()
    options.add(parser, kind)
    return parser


def parsed(kind, *words):
    values = vars(parser_of(kind).parse_args(words))
    return options.resolve(kind, values["config"], options.given(kind, values))


def another(kind, field):
    """A value that is not the default."""
    only = choices(typing.get_type_hints(kind)[field.name])
    if only:
        return next(value for value in only if value != field.default)
    if isinstance(field.default, bool):
        return not field.default
    if field.metadata["rule"] is not None:
        return {"method": "mine:Hints", "method_option": {"weight": 0.5}}[field.name]
    return {"int": 9, "float": max(0.125, field.metadata["least"] or 0.0), "str": "something"}[
        str(field.type).split(" | ")[0]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_a_word_and_a_line(kind, tmp_path):
    assert parsed(kind) == kind()
    for field in dataclasses.fields(kind):
        if field.name == "recipe":  # which changes others: see test_recipes.py
            continue
        value, word = another(kind, field), "--" + field.name.replace("_", "-")
        words = [word] if value is True else ["--no" + word[1:]] if value is False else [word, str(value)]
        words = [word, "weight=0.5"] if isinstance(value, dict) else words
        changed = parsed(kind, *words)
        assert changed == dataclasses.replace(kind(), **{field.name: value})
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({field.name: value}))
        assert parsed(kind, "--config", str(tmp_path / "one.yaml")) == changed
        (tmp_path / "all.yaml").write_text(options.to_yaml(changed))
        assert parsed(kind, "--config", str(tmp_path / "all.yaml")) == changed


def test_words_go_before_the_file(tmp_path):
    (tmp_path / "s.yaml").write_text("epochs: 7\nlr: 1\nprecision: 32\nkl_t2: true\nstudent_shots: null\n")
    found = parsed(TrainSettings, "--config", str(tmp_path / "s.yaml"), "--epochs", "9", "--no-kl-t2")
    assert found == TrainSettings(epochs=9, lr=1.0, precision="32", kl_t2=False)
    assert isinstance(found.lr, float)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert parsed(TrainSettings, "--config", str(tmp_path / "empty.yaml")) == TrainSettings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epoch: 3", "there is no setting 'epoch'"),
        ("epochs: 0", "epochs=0: must be at least 1"),
        ("epochs: 2.5", "epochs=2.5: must be a whole number"),
        ("epochs: true", "epochs=True: must be a whole number"),
        ("epochs: null", "epochs=None: must be a whole number"),
        ("lr: .nan", "lr=nan: must be a finite number"),
        ("lr: .inf", "lr=inf: must be a finite number"),
        ("kl_t2: 1", "kl_t2=1: must be true or false"),
        ("bn: best", "bn='best': must be one of separate, concatenated, frozen_stats"),
        ("- epochs", "must hold settings by name, not a list"),
        ("epochs: [", "is no YAML file of settings"),
        ("epochs: !!python/object/apply:os.mkdir [harm]", "is no YAML file of settings"),
        ("\x00", "is no YAML file of settings"),
        ("#" * (options._LARGEST + 1), "has more than"),
    ],
)
def test_bad_files_are_named(content, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(content)
    assert cli.main(["train", "--config", "bad.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amkd-distill: --config bad.yaml: ")
    assert words in line
    assert os.listdir(tmp_path) == ["bad.yaml"]


def test_a_file_that_is_not_there(capsys):
    assert cli.main(["train", "--config", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "amkd-distill: --config nowhere.yaml: No such file or directory\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--precision", "fp16"], "--precision fp16: needs a GPU"),
        (["--compile", "--space", "features", "--variant", "student_space"], "--compile: hides the features"),
        (["--compile", "--method", "rkd"], "--compile: hides the layers that rkd listens to"),
        (["--compile", "--method", "crd"], "--compile: hides the layers that crd listens to"),
        (["--jda-probability", "1.5"], "--jda-probability 1.5: must be at most 1"),
        (["--ccd-ce-weight", "2"], "--ccd-ce-weight 2: must be at most 1"),
        (["--whole-step"], "--whole-step: records a CUDA graph"),
        (["--student-network", "resnet9"], "--student-network resnet9: must be resnet8"),
        (["--margin", "-1"], "must be at least 0"),
        (["--data", "cifar10", "--data-root", "nowhere"], "cifar10"),
    ],
)
def test_wishes_that_cannot_be_granted(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "runs" / "train").exists()


def test_channels_last_on_a_cpu_is_for_our_own_networks(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine_in_memory", types.SimpleNamespace(make=lambda channels, classes: None))
    monkeypatch.setattr("amkd_fast.distill.teacher_file.check", lambda path, network: None)
    cpu, mine = torch.device("cpu"), "mine_in_memory:make"
    for settings in (TrainSettings, CompareSettings):
        build.check(settings(channels_last=True), cpu)
        build.check(settings(student_network=mine), cpu)
        build.check(settings(channels_last=True, student_network=mine), torch.device("cuda"))
        build.check(settings(channels_last=True, teacher_network=mine, teacher="a file"), cpu)  # is not trained here
        for role in ("teacher", "student"):
            with pytest.raises(UserError, match=f"--channels-last: on a CPU must not .* --{role}-network {mine}"):
                build.check(settings(channels_last=True, **{f"{role}_network": mine}), cpu)


def test_what_a_whole_step_does_not_go_with(monkeypatch):
    cuda = torch.device("cuda")
    build.check(TrainSettings(whole_step=True), cuda)
    for more in ({"accumulate": 2}, {"precision": "fp16"}, {"compile": True}):
        with pytest.raises(UserError, match="--whole-step: does not go with"):
            build.check(TrainSettings(whole_step=True, **more), cuda)
    with pytest.raises(UserError, match=r"--whole-step: is for the methods student, kd, .*, not for dkd"):
        build.check(CompareSettings(whole_step=True, methods="kd,dkd"), cuda)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--whole-step: is for one process"):
        build.check(TrainSettings(whole_step=True), cuda)


# --- from settings to methods


@pytest.fixture(scope="module")
def digits():
    return datasets.load(Settings())


@pytest.mark.parametrize("bn", methods.BN_POLICIES)
@pytest.mark.parametrize("name", USUAL)
def test_methods_of_settings(digits, name, bn):
    settings = Settings(bn=bn, temperature=2.5, margin=4.0, memory=32, boundary_samples=7, attack_steps=3)
    method = build.method(name, settings, digits)
    kinds = {"student": methods.StudentAlone, "kd": methods.KD, "amkd": methods.AMKD}
    assert type(method) is kinds.get(name, methods.BSS)
    if name == "student":
        return
    assert method.criterion.temperature == 2.5
    if name == "kd":
        return
    assert (method.bn, method.limit, method.attack_options["steps"]) == (bn, 7, 3)
    assert method.preset == ("near_boundary" if name == "amkd" else name.removeprefix("bss-"))
    assert (method.attack_options["lower"], method.attack_options["upper"]) == (0.0, 1.0)
    assert method.attack_options["normalisation"] == (digits.mean, (digits.std,))
    assert (method.criterion.memory is not None) == (name == "amkd")
    expected = methods.ZOO_BOUNDARY if name == "bss-zoo" else methods.OFFICIAL_BOUNDARY
    assert method.boundary_weight == expected
    assert method.kl_weight == methods.OFFICIAL_KL


def test_neighbouring_methods_of_settings(digits):
    settings = Settings(
        triplet_kd_weight=3.0,
        triplet_kd_margin=4.0,
        extended_logit_weight=0.5,
        extended_segment_weight=0.25,
        extended_ce_weight=0.125,
        jda_probability=0.75,
        ccd_temperature=6.0,
        ccd_ce_weight=0.25,
        tald_particles=3,
        tald_steps=2,
        tald_eps=0.2,
        tald_weight=0.5,
        mkd_ce_weight=0.5,
        dkd_temperature=5.0,
        dkd_target_weight=2.0,
        dkd_other_weight=4.0,
        dkd_warmup=7,
        rkd_distance_weight=1.0,
        rkd_angle_weight=2.0,
        student_stages="stages.1, head",
        teacher_stages="stages.2,head",
        fitnet_weight=3.0,
        fitnet_stage=1,
        at_weight=4.0,
        at_power=3.0,
        sp_weight=5.0,
        crd_weight=6.0,
        crd_temperature=0.5,
        crd_negatives=33,
        crd_features=16,
        crd_momentum=0.25,
        reviewkd_weight=7.0,
        reviewkd_warmup=9,
    )
    one_stage = dataclasses.replace(settings, student_stages="", teacher_stages="")
    found = {
        name: build.method(name, one_stage if name == "fitnet" else settings, digits)
        for name in METHODS
        if name not in USUAL
    }
    for name, weight in (("triplet-ce", 0.0), ("triplet-kd", 1.0)):
        triplets = found.pop(name)
        assert (triplets.triplet_weight, triplets.margin, triplets.criterion.kl_weight) == (3.0, 4.0, weight)
    extended, views = found.pop("extended-kd"), found.pop("jda-ccd")
    assert (extended.logit_weight, extended.segment_weight, extended.ce_weight) == (0.5, 0.25, 0.125)
    assert (views.probability, views.temperature, views.ce_weight) == (0.75, 6.0, 0.25)
    assert (views.mean, views.std) == ((0.0,), (1.0,))
    tald, mixing = found.pop("tald"), found.pop("mkd")
    about = tald.attack_options
    assert (about["particles"], about["steps"], tald.particle_weight) == (3, 2, 0.5)
    assert (about["eps"], about["lower"], about["upper"]) == (0.2, 0.0, 1.0)
    assert mixing.ce_weight == 0.5
    dkd, rkd = found.pop("dkd"), found.pop("rkd")
    assert (dkd.temperature, dkd.target_weight, dkd.other_weight, dkd.dkd_weight) == (
        5.0,
        2.0,
        4.0,
        methods.Rising(1.0, 7),
    )
    assert (rkd.distance_weight, rkd.angle_weight) == (1.0, 2.0)
    fitnet, at, sp, crd, review = (found.pop(name) for name in ("fitnet", "at", "sp", "crd", "reviewkd"))
    assert (fitnet.hint_weight, fitnet.stage) == (3.0, 1)
    assert (at.attention_weight, at.power, sp.similarity_weight) == (4.0, 3.0, 5.0)
    assert (crd.contrast_weight, crd.temperature, crd.negatives) == (6.0, 0.5, 33)
    assert (crd.features, crd.momentum, len(crd.of_row)) == (16, 0.25, len(digits.student))
    assert review.review_weight == methods.Rising(7.0, 9)
    for method in (extended, at, sp, review):
        assert method._wished == (["stages.1", "head"], ["stages.2", "head"])
    assert not found


def test_all_is_a_word_for_every_method():
    assert CompareSettings(methods="all").names() == METHODS
    assert CompareSettings().names() == USUAL
    assert CompareSettings(methods="kd,rkd").names() == ("kd", "rkd")


def test_schedules_of_settings():
    constant = Settings(boundary_schedule="constant", boundary_weight=0.5)
    assert build.boundary_weight("amkd", constant) == methods.Constant(0.5)
    assert build.boundary_weight("amkd", Settings(boundary_schedule="zoo")) == methods.ZOO_BOUNDARY
    assert build.boundary_weight("bss-zoo", Settings(boundary_schedule="falling")) == methods.OFFICIAL_BOUNDARY


def test_networks_of_settings():
    assert [Settings().network(role) for role in ("teacher", "student")] == ["small-16-2", "small-4-1"]
    cifar = Settings(data="cifar10", student_network="wrn-10-1")
    assert [cifar.network(role) for role in ("teacher", "student")] == ["resnet26", "wrn-10-1"]
