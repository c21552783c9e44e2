"""The pocket model's training: noise pairing, restyled pairs, auxiliary heads, and each stage."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from engine.models import POCKET
from engine.training.loop import Limit
from engine.training.pocket import autoencoder, classifier, compress, consistency_distillation, diffusion
from engine.training.pocket.auxiliary_heads import PositionHeads
from engine.training.pocket.captions import PatternSpec
from engine.training.pocket.dataset import LatentDataset, build_dataset
from engine.training.pocket.drawing import draw
from engine.training.pocket.evaluate import edge_strength
from engine.training.pocket.model_folder import list_entries
from engine.training.pocket.noise_pairing import (
    FIRST_COUPLED_TIMESTEP,
    composition_rng,
    draw_coupled,
    draw_source,
    restyle,
)
from engine.training.pocket.palette import dominant_colour
from engine.training.pocket.patterns import PATTERNS
from engine.training.pocket.text_encoder import new_text_encoder, new_tokenizer
from engine.training.pocket.train import MODEL_INDEX, parse_options, save

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", ["file", "home", "other model", "more files", "work"])
def test_a_folder_that_holds_something_else_is_not_replaced(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if case == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        index = (POCKET / "model_index.json").read_text()
        (out / "model_index.json").write_text(index.replace("LCM", "DDIM") if case == "other model" else index)
        if case in ("home", "more files"):
            (out / "diary.txt").write_text("mine")
        if case == "home":
            (out / "model_index.json").unlink()
    with pytest.raises(SystemExit) as ended:
        parse_options(["--work", str(out)] if case == "work" else ["--out", str(out), "--work", str(tmp_path / "work")])
    assert ended.value.code == 2
    assert str(out) in capsys.readouterr().err.splitlines()[-1]


def test_an_earlier_result_is_replaced_by_a_whole_model(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    for name in ("vae", "unet", "text_encoder", "tokenizer"):
        shutil.copytree(POCKET / name, work / name)
    for _ in range(2):
        save(work, out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
        assert (out / "model_index.json").read_text() == (POCKET / "model_index.json").read_text()
    shutil.rmtree(work / "unet")
    with pytest.raises(OSError, match="unet"):
        save(work, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
    assert {path.name for path in out.iterdir()} == list_entries(MODEL_INDEX)


@pytest.fixture(scope="module")
def dataset() -> LatentDataset:
    return build_dataset(AutoencoderTiny.from_pretrained(POCKET / "vae").float().eval(), 3, 16, 64, "cpu", chunk=8)


@pytest.fixture(scope="module")
def encoder() -> diffusion.CaptionEncoder:
    tokenizer = new_tokenizer(1)
    return diffusion.CaptionEncoder(tokenizer, new_text_encoder(tokenizer))


def test_a_pattern_has_one_composition_in_every_colour() -> None:
    spec, picture = draw_coupled(np.random.default_rng(4), 64)
    again = draw_coupled(np.random.default_rng(4), 64)
    assert spec == again[0]
    assert np.array_equal(picture, again[1])
    assert spec.colours == tuple(sorted(spec.colours))
    network = classifier.load()
    for pattern in PATTERNS:
        drawn = [draw(PatternSpec(pattern, (colour,)), composition_rng(pattern), 256) for colour in ("cyan", "red")]
        assert [classifier.classify(network, np.round(d * 255).astype(np.uint8)) for d in drawn] == [pattern] * 2
        assert np.corrcoef(drawn[0].max(-1).ravel(), drawn[1].max(-1).ravel())[0, 1] > 0.9


def test_a_source_turns_into_the_prompt_as_the_strength_grows() -> None:
    spec, source = PatternSpec("rings", ("cyan",)), draw_source(np.random.default_rng(8), 128)
    steps = [restyle(spec, source, strength) for strength in (0.05, 0.5, 1.0)]
    assert np.array_equal(steps[0], source)
    half, full = (np.round(picture * 255).astype(np.uint8) for picture in steps[1:])
    assert dominant_colour(half) == dominant_colour(full) == "cyan"
    edges = edge_strength(np.round(source * 255).astype(np.uint8)).ravel()
    layout = [np.corrcoef(edge_strength(picture).ravel(), edges)[0, 1] for picture in (half, full)]
    assert layout[0] > layout[1] + 0.1


def test_a_batch_holds_the_requested_rows_of_each_kind(dataset: LatentDataset) -> None:
    torch.manual_seed(1)
    batch = dataset.batch((3, 5, 4), np.random.default_rng(1), "cpu")
    assert batch.source.shape == batch.target.shape == batch.noise.shape == (12, 8, 8, 8)
    assert len(batch.captions) == len(batch.specs) == 12
    assert (batch.free, batch.coupled) == (3, 5)
    assert torch.equal(batch.source[:8], batch.target[:8])
    assert (batch.source[8:] - batch.target[8:]).abs().amax((1, 2, 3)).min() > 0.01
    assert batch.t[:3].max() < FIRST_COUPLED_TIMESTEP
    assert batch.t[3:8].min() >= FIRST_COUPLED_TIMESTEP
    assert 100 <= batch.t[8:].min() <= batch.t[8:].max() < FIRST_COUPLED_TIMESTEP


def test_the_velocity_leads_back_to_the_target() -> None:
    torch.manual_seed(2)
    tables = diffusion.NoiseTables("cpu")
    z, target, noise, t = (
        torch.randn(4, 8, 4, 4),
        torch.randn(4, 8, 4, 4),
        torch.randn(4, 8, 4, 4),
        torch.tensor([999, 700, 300, 100]),
    )
    x = tables.add_noise(z, noise, t)
    back = tables.lookup(tables.root_a, t) * x - tables.lookup(tables.root_b, t) * tables.velocity(x, target, t)
    assert torch.allclose(back, target, atol=1e-4)


def test_position_heads_learn_from_features_and_can_be_removed() -> None:
    torch.manual_seed(3)
    denoiser = diffusion.new_denoiser()
    x, condition, target = torch.randn(2, 8, 8, 8), torch.zeros(2, 32, 192), torch.zeros(2, 8, 8, 8)
    heads = PositionHeads(denoiser)
    losses = []
    optimiser = torch.optim.Adam([*denoiser.parameters(), *heads.heads.parameters()], lr=5e-4)
    for _ in range(12):
        denoiser(x, 999, condition)
        position, latent = heads.losses(target)
        optimiser.zero_grad()
        (position + latent).backward()
        optimiser.step()
        losses.append((position.item(), latent.item()))
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]
    before = denoiser(x, 999, condition).sample
    heads.losses(target)
    heads.remove()
    assert torch.equal(denoiser(x, 999, condition).sample, before)
    with pytest.raises(ValueError, match="zip"):
        heads.losses(target)


def test_the_caption_head_learns_and_ignores_empty_captions(encoder: diffusion.CaptionEncoder) -> None:
    torch.manual_seed(4)
    denoiser = diffusion.new_denoiser()
    head = diffusion.caption_head_of(denoiser)
    specs = [
        PatternSpec("fire", ("red",)),
        PatternSpec("rings", ("blue", "cyan"), "dark"),
        PatternSpec("dots", ("white",)),
    ]
    optimiser = torch.optim.Adam([*denoiser.add_embedding.parameters(), *head.head.parameters()], lr=2e-3)
    losses = []
    for captions in [["red fire", "dark blue and cyan rings", ""]] * 15:
        with torch.no_grad():
            condition = encoder(captions)
        denoiser(torch.zeros(3, 8, 8, 8), 999, condition)
        losses.append(head.loss(specs, captions))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    same = head.loss(specs, captions)
    assert torch.equal(same, head.loss([*specs[:2], PatternSpec("stars", ("lime",))], captions))
    head.remove()


def test_each_stage_changes_the_weights_and_keeps_them_finite(
    dataset: LatentDataset, encoder: diffusion.CaptionEncoder
) -> None:
    denoiser = diffusion.new_denoiser()
    text = copy.deepcopy(encoder.model.state_dict())
    for train in (diffusion.train, consistency_distillation.train):
        before = copy.deepcopy(denoiser.state_dict())
        train(denoiser, encoder, dataset, Limit(steps=2), 1, (2, 2, 2))
        after = denoiser.state_dict()
        assert all(torch.isfinite(value).all() for value in after.values())
        assert any(not torch.equal(before[name], after[name]) for name in after)
    assert any(not torch.equal(text[name], value) for name, value in encoder.model.state_dict().items())


def teacher_denoiser(**more: object) -> UNet2DConditionModel:
    middle = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    return UNet2DConditionModel.from_config({**diffusion.new_denoiser().config, **middle, **more})


def test_narrower_levels_begin_with_the_first_channels_of_each() -> None:
    torch.manual_seed(8)
    teacher, student = teacher_denoiser(block_out_channels=(48, 96, 144), norm_num_groups=16), diffusion.new_denoiser()
    with torch.no_grad():  # the fast waves, which fewer waves cannot reproduce
        teacher.time_embedding.linear_1.weight[:, [*range(12), *range(24, 36)]] = 0
    compress.copy_shared_layers(teacher, student)
    deep, shallow = (model.up_blocks[1].resnets[0].conv1.weight for model in (teacher, student))
    assert torch.equal(shallow, deep[:72, :216]), "of 144 and 96 channels all of the first, 72 of the second"
    deep, shallow = (model.up_blocks[2].resnets[0].conv1.weight for model in (teacher, student))
    assert torch.equal(shallow, deep[:32][:, [*range(72), *range(96, 128)]])
    deep, shallow = (model.down_blocks[1].resnets[0].time_emb_proj.weight for model in (teacher, student))
    assert torch.equal(shallow, deep[[*range(72), *range(96, 168)]]), "its scales, then its shifts"
    with torch.no_grad():
        teacher_waves, student_waves = (
            model.time_embedding.linear_1(model.time_proj(torch.arange(1000))) for model in (teacher, student)
        )
    assert (student_waves - teacher_waves).square().mean() < 0.1 * teacher_waves.var(0).mean()
    with pytest.raises(ValueError, match=r"the larger denoiser has no \S+ of that shape"):
        compress.copy_shared_layers(teacher_denoiser(block_out_channels=(48, 96, 128), norm_num_groups=16), student)


def test_a_student_denoiser_learns_its_teachers_answers(
    dataset: LatentDataset, encoder: diffusion.CaptionEncoder
) -> None:
    torch.manual_seed(5)
    teacher, student = teacher_denoiser(), diffusion.new_denoiser()
    removed = compress.copy_shared_layers(teacher, student)
    assert removed
    assert all(name.startswith("down_blocks.1.attentions") for name in removed)
    with pytest.raises(ValueError, match=r"the larger denoiser has no down_blocks\.1\.attentions\S+ of that shape"):
        compress.copy_shared_layers(student, teacher)
    with torch.no_grad():
        for name, value in teacher.named_parameters():  # so that the removed layers matter
            if name in removed and value.dim() > 1:
                value.mul_(2)
    x, t = torch.randn(4, 8, 8, 8), torch.tensor([999, 700, 400, 100])
    condition = encoder(["red fire", "blue rings", "", "lime dots"]).detach()

    def distance() -> float:
        with torch.no_grad():
            return float((teacher(x, t, condition).sample - student(x, t, condition).sample).square().mean())

    before, weights = distance(), copy.deepcopy(teacher.state_dict())
    compress.train(teacher, student, encoder, dataset, Limit(steps=40), 1, (2, 2, 2))
    assert distance() < 0.9 * before
    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())
    assert not student.down_blocks[2]._forward_hooks


def test_a_student_autoencoder_learns_its_teachers_latents() -> None:
    teacher = AutoencoderTiny.from_pretrained(POCKET / "vae", torch_dtype=torch.float32)
    fewer = {"num_encoder_blocks": (0, 0, 0, 1), "num_decoder_blocks": (2, 1, 0, 0)}
    student = AutoencoderTiny.from_config({**teacher.config, **fewer})
    assert autoencoder.copy_shared_layers(teacher, student) == [
        "encoder level 3 AutoencoderTinyBlock 1",
        "decoder level 0 AutoencoderTinyBlock 2",
    ]
    assert torch.equal(student.decoder.layers[-1].weight, teacher.decoder.layers[-1].weight)
    with pytest.raises(KeyError, match="encoder level 3 AutoencoderTinyBlock 1"):
        autoencoder.copy_shared_layers(student, teacher)
    pictures = torch.from_numpy(autoencoder.draw_canvases(9, 8, 64)).permute(0, 3, 1, 2) / 127.5 - 1

    def distance(model: AutoencoderTiny) -> float:
        with torch.no_grad():
            return float((teacher.encoder(pictures) - model.encoder(pictures)).square().mean())

    before, weights = distance(student), copy.deepcopy(teacher.state_dict())
    trained = autoencoder.train(Limit(steps=150), 1, "cpu", teacher, student, pictures=16, batch=4)
    assert distance(trained) < 0.5 * before
    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())


def test_mismatched_conditions_have_other_captions_at_any_timestep(dataset: LatentDataset) -> None:
    torch.manual_seed(6)
    batch = dataset.batch((4, 2, 40), np.random.default_rng(6), "cpu")
    t, captions = compress.mismatch_conditions(batch)
    assert captions[:4] == [batch.captions[1], batch.captions[1], batch.captions[3], batch.captions[3]]
    assert captions[4:] == batch.captions[4:]
    assert torch.equal(t[:6], batch.t[:6])
    assert 100 <= t[6:].min() < 400
    assert 700 < t[6:].max() < FIRST_COUPLED_TIMESTEP
    assert not torch.equal(t, batch.t)


def test_earlier_option_spellings_are_aliases(tmp_path: Path) -> None:
    options = parse_options(["--from", "distil", "--slim", str(tmp_path), "--slim-minutes", "42", "0"])
    assert (options.start, options.compress, options.compress_minutes) == ("distillation", tmp_path, [42, 0])
    with pytest.raises(SystemExit):
        parse_options(["--minutes", "1", "1", "1", "1", "--steps", "1", "1", "1", "1"])
