"""How `sd-tiny` is trained, at toy width and for a few steps, and that it fits into the repository."""

from pathlib import Path

import pytest
import torch

from cones.pretrain import sd_model as tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Eight flat colours: uint8 (8, 3, 64, 64)."""
    torch.manual_seed(0)
    return torch.randint(256, (8, 3, 1, 1), dtype=torch.uint8).expand(8, 3, 64, 64).contiguous()


@pytest.fixture(scope="module")
def vae(pictures: torch.Tensor):
    """A narrow autoencoder after a few steps, and the losses of those."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    made = AutoencoderKL(**tiny.VAE | {"block_out_channels": [8, 8, 8, 16], "norm_num_groups": 4})
    losses: list[float] = []
    tiny.train_autoencoder(made, lambda step: pictures.float() / 127.5 - 1, 16, lambda step, loss: losses.append(loss))
    return made, losses


def test_the_autoencoder_learns_and_is_frozen(vae) -> None:
    made, losses = vae
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert not made.training
    assert not any(p.requires_grad for p in made.parameters())


def test_scaled_latents_have_unit_variance(vae, pictures: torch.Tensor) -> None:
    made, _ = vae
    means, stds = tiny.latents_of(made, pictures, batch=3)
    assert means.shape == stds.shape == (8, tiny.LATENT_CHANNELS, 8, 8)
    assert means.dtype == torch.float16
    assert float((means.float() * made.config.scaling_factor).std()) == pytest.approx(1, abs=1e-3)
    assert (stds > 0).all()


def test_the_unet_learns_and_its_mean_is_kept() -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    narrow = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 2}
    unet = UNet2DConditionModel(**tiny.UNET | narrow, cross_attention_dim=12)
    latents, text, losses = torch.randn(32, tiny.LATENT_CHANNELS, 8, 8), torch.randn(32, 5, 12), []
    schedule = DDIMScheduler(**tiny.SCHEDULE)
    mean = tiny.train_unet(unet, schedule, lambda step: (latents, text), 30, lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert not mean.training
    pairs = list(zip(mean.parameters(), unet.parameters()))
    assert any(not torch.equal(kept, last) for kept, last in pairs)
    assert all(torch.allclose(kept, last, atol=0.1) for kept, last in pairs)


def test_it_takes_less_than_eight_megabytes() -> None:
    text, _ = tiny.text_parts(ROOT / "models/backbones/clip-tiny")
    vae, unet, _ = tiny.new_parts(text.config.hidden_size)
    assert 2 * sum(p.numel() for part in (vae, unet, text) for p in part.parameters()) < 7.9e6
