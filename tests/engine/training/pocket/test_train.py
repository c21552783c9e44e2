"""How the pocket model is taught: what pure noise becomes, what a source becomes, and that each stage trains."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from engine.models import POCKET
from engine.training.pocket import autoencoder, classifier, diffusion
from engine.training.pocket import compress as slim
from engine.training.pocket import consistency_distillation as distil
from engine.training.pocket.auxiliary_heads import CaptionHead, PositionHeads
from engine.training.pocket.captions import Look
from engine.training.pocket.dataset import Lessons, lessons
from engine.training.pocket.drawing import draw
from engine.training.pocket.evaluate import edges
from engine.training.pocket.noise_pairing import FLOOR, coupled_picture, own_rng, repainted, source_picture
from engine.training.pocket.palette import dominant_colour
from engine.training.pocket.patterns import FAMILIES
from engine.training.pocket.text_encoder import new_text_encoder, new_tokenizer


@pytest.fixture(scope="module")
def small() -> Lessons:
    return lessons(AutoencoderTiny.from_pretrained(POCKET / "vae").float().eval(), 3, 16, 64, "cpu", chunk=8)


@pytest.fixture(scope="module")
def encoder() -> diffusion.Encoder:
    tokenizer = new_tokenizer(1)
    return diffusion.Encoder(tokenizer, new_text_encoder(tokenizer))


def test_a_family_has_one_composition_of_its_own_whatever_its_colours() -> None:
    chosen, picture = coupled_picture(np.random.default_rng(4), 64)
    again = coupled_picture(np.random.default_rng(4), 64)
    assert chosen == again[0]
    assert np.array_equal(picture, again[1])
    assert chosen.colours == tuple(sorted(chosen.colours))
    judge = classifier.load()
    for family in FAMILIES:
        drawn = [draw(Look(family, (colour,)), own_rng(family), 256) for colour in ("cyan", "red")]
        assert [classifier.family(judge, np.round(d * 255).astype(np.uint8)) for d in drawn] == [family] * 2
        assert np.corrcoef(drawn[0].max(-1).ravel(), drawn[1].max(-1).ravel())[0, 1] > 0.9


def test_a_source_turns_into_the_prompt_as_the_strength_grows() -> None:
    chosen, source = Look("rings", ("cyan",)), source_picture(np.random.default_rng(8), 128)
    steps = [repainted(chosen, source, strength) for strength in (0.05, 0.5, 1.0)]
    assert np.array_equal(steps[0], source)
    half, full = (np.round(picture * 255).astype(np.uint8) for picture in steps[1:])
    assert dominant_colour(half) == dominant_colour(full) == "cyan"
    of = edges(np.round(source * 255).astype(np.uint8)).ravel()
    kept = [np.corrcoef(edges(picture).ravel(), of)[0, 1] for picture in (half, full)]
    assert kept[0] > kept[1] + 0.1


def test_a_batch_holds_the_kinds_it_was_asked_for(small: Lessons) -> None:
    torch.manual_seed(1)
    batch = small.batch((3, 5, 4), np.random.default_rng(1), "cpu")
    assert batch.source.shape == batch.target.shape == batch.noise.shape == (12, 8, 8, 8)
    assert len(batch.captions) == len(batch.looks) == 12
    assert (batch.free, batch.coupled) == (3, 5)
    assert torch.equal(batch.source[:8], batch.target[:8])
    assert (batch.source[8:] - batch.target[8:]).abs().amax((1, 2, 3)).min() > 0.01
    assert batch.t[:3].max() < FLOOR
    assert batch.t[3:8].min() >= FLOOR
    assert 100 <= batch.t[8:].min() <= batch.t[8:].max() < FLOOR


def test_the_velocity_leads_back_to_the_target() -> None:
    torch.manual_seed(2)
    noising = diffusion.Noising("cpu")
    z, target, noise, t = (
        torch.randn(4, 8, 4, 4),
        torch.randn(4, 8, 4, 4),
        torch.randn(4, 8, 4, 4),
        torch.tensor([999, 700, 300, 100]),
    )
    x = noising.noised(z, noise, t)
    back = noising.at(noising.root_a, t) * x - noising.at(noising.root_b, t) * noising.velocity(x, target, t)
    assert torch.allclose(back, target, atol=1e-4)


def test_places_are_learnt_from_features_and_leave_no_trace() -> None:
    torch.manual_seed(3)
    denoiser = diffusion.new_denoiser()
    x, condition, target = torch.randn(2, 8, 8, 8), torch.zeros(2, 32, 192), torch.zeros(2, 8, 8, 8)
    places = PositionHeads(denoiser)
    losses = []
    optimiser = torch.optim.Adam([*denoiser.parameters(), *places.heads.parameters()], lr=5e-4)
    for _ in range(12):
        denoiser(x, 999, condition)
        place, picture = places.losses(target)
        optimiser.zero_grad()
        (place + picture).backward()
        optimiser.step()
        losses.append((place.item(), picture.item()))
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]
    before = denoiser(x, 999, condition).sample
    places.losses(target)
    places.remove()
    assert torch.equal(denoiser(x, 999, condition).sample, before)
    with pytest.raises(ValueError, match="zip"):
        places.losses(target)


def test_words_are_learnt_and_empty_captions_count_nothing(encoder: diffusion.Encoder) -> None:
    torch.manual_seed(4)
    denoiser = diffusion.new_denoiser()
    words = CaptionHead(denoiser)
    looks = [Look("fire", ("red",)), Look("rings", ("blue", "cyan"), "dark"), Look("dots", ("white",))]
    optimiser = torch.optim.Adam([*denoiser.add_embedding.parameters(), *words.head.parameters()], lr=2e-3)
    losses = []
    for captions in [["red fire", "dark blue and cyan rings", ""]] * 15:
        with torch.no_grad():
            condition = encoder(captions)
        denoiser(torch.zeros(3, 8, 8, 8), 999, condition)
        losses.append(words.loss(looks, captions))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    same = words.loss(looks, captions)
    assert torch.equal(same, words.loss([*looks[:2], Look("stars", ("lime",))], captions))
    words.remove()


def test_each_stage_changes_the_weights_and_keeps_them_finite(small: Lessons, encoder: diffusion.Encoder) -> None:
    denoiser = diffusion.new_denoiser()
    text = copy.deepcopy(encoder.model.state_dict())
    for stage in (diffusion.train, distil.train):
        before = copy.deepcopy(denoiser.state_dict())
        stage(denoiser, encoder, small, 0.02, 1, (2, 2, 2))
        after = denoiser.state_dict()
        assert all(torch.isfinite(value).all() for value in after.values())
        assert any(not torch.equal(before[name], after[name]) for name in after)
    assert any(not torch.equal(text[name], value) for name, value in encoder.model.state_dict().items())


def larger_denoiser(**more: object) -> UNet2DConditionModel:
    middle = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    return UNet2DConditionModel.from_config({**diffusion.new_denoiser().config, **middle, **more})


def test_narrower_levels_begin_with_the_first_channels_of_each() -> None:
    torch.manual_seed(8)
    larger, smaller = larger_denoiser(block_out_channels=(48, 96, 144), norm_num_groups=16), diffusion.new_denoiser()
    with torch.no_grad():  # of what cannot be had from fewer waves, those that turn within a few timesteps
        larger.time_embedding.linear_1.weight[:, [*range(12), *range(24, 36)]] = 0
    slim.carry_over(larger, smaller)
    deep, shallow = (model.up_blocks[1].resnets[0].conv1.weight for model in (larger, smaller))
    assert torch.equal(shallow, deep[:72, :216]), "of 144 and 96 channels all of the first, 72 of the second"
    deep, shallow = (model.up_blocks[2].resnets[0].conv1.weight for model in (larger, smaller))
    assert torch.equal(shallow, deep[:32][:, [*range(72), *range(96, 128)]])
    deep, shallow = (model.down_blocks[1].resnets[0].time_emb_proj.weight for model in (larger, smaller))
    assert torch.equal(shallow, deep[[*range(72), *range(96, 168)]]), "its scales, then its shifts"
    with torch.no_grad():
        theirs, ours = (
            model.time_embedding.linear_1(model.time_proj(torch.arange(1000))) for model in (larger, smaller)
        )
    assert (ours - theirs).square().mean() < 0.1 * theirs.var(0).mean()
    with pytest.raises(ValueError, match=r"the larger denoiser has no \S+ of that shape"):
        slim.carry_over(larger_denoiser(block_out_channels=(48, 96, 128), norm_num_groups=16), smaller)


def test_a_denoiser_of_fewer_layers_learns_the_larger_ones_answers(small: Lessons, encoder: diffusion.Encoder) -> None:
    torch.manual_seed(5)
    larger, smaller = larger_denoiser(), diffusion.new_denoiser()
    left = slim.carry_over(larger, smaller)
    assert left
    assert all(name.startswith("down_blocks.1.attentions") for name in left)
    with pytest.raises(ValueError, match=r"the larger denoiser has no down_blocks\.1\.attentions\S+ of that shape"):
        slim.carry_over(smaller, larger)
    with torch.no_grad():
        for name, value in larger.named_parameters():  # so that what is left behind is missed
            if name in left and value.dim() > 1:
                value.mul_(2)
    x, t = torch.randn(4, 8, 8, 8), torch.tensor([999, 700, 400, 100])
    condition = encoder(["red fire", "blue rings", "", "lime dots"]).detach()

    def apart() -> float:
        with torch.no_grad():
            return float((larger(x, t, condition).sample - smaller(x, t, condition).sample).square().mean())

    before, whole = apart(), copy.deepcopy(larger.state_dict())
    slim.train(larger, smaller, encoder, small, 0.2, 1, (2, 2, 2))
    assert apart() < 0.9 * before
    assert all(torch.equal(whole[name], value) for name, value in larger.state_dict().items())
    assert not smaller.down_blocks[2]._forward_hooks


def test_an_autoencoder_of_fewer_layers_learns_the_larger_ones_latents() -> None:
    larger = AutoencoderTiny.from_pretrained(POCKET / "vae", torch_dtype=torch.float32)
    fewer = {"num_encoder_blocks": (0, 0, 0, 1), "num_decoder_blocks": (2, 1, 0, 0)}
    smaller = AutoencoderTiny.from_config({**larger.config, **fewer})
    assert autoencoder.carry_over(larger, smaller) == [
        "encoder level 3 AutoencoderTinyBlock 1",
        "decoder level 0 AutoencoderTinyBlock 2",
    ]
    assert torch.equal(smaller.decoder.layers[-1].weight, larger.decoder.layers[-1].weight)
    with pytest.raises(KeyError, match="encoder level 3 AutoencoderTinyBlock 1"):
        autoencoder.carry_over(smaller, larger)
    pictures = torch.from_numpy(autoencoder.canvases(9, 8, 64)).permute(0, 3, 1, 2) / 127.5 - 1

    def apart(model: AutoencoderTiny) -> float:
        with torch.no_grad():
            return float((larger.encoder(pictures) - model.encoder(pictures)).square().mean())

    before, whole = apart(smaller), copy.deepcopy(larger.state_dict())
    trained = autoencoder.train(0.15, 1, "cpu", larger, smaller, pictures=16, batch=4)
    assert apart(trained) < 0.5 * before
    assert all(torch.equal(whole[name], value) for name, value in larger.state_dict().items())


def test_strayed_rows_meet_other_captions_at_any_timestep(small: Lessons) -> None:
    torch.manual_seed(6)
    batch = small.batch((4, 2, 40), np.random.default_rng(6), "cpu")
    t, captions = slim.strayed(batch)
    assert captions[:4] == [batch.captions[1], batch.captions[1], batch.captions[3], batch.captions[3]]
    assert captions[4:] == batch.captions[4:]
    assert torch.equal(t[:6], batch.t[:6])
    assert 100 <= t[6:].min() < 400
    assert 700 < t[6:].max() < FLOOR
    assert not torch.equal(t, batch.t)
