"""Pretrain `clip-tiny` on the generated world's base concepts (`make pretrain`)."""

import time

import numpy as np
import torch

from cones.common.console import progress_bar
from cones.common.files import fresh_folder
from cones.common.layout import BACKBONES
from cones.pretrain.clip_model import IMAGE_SIZE, PATCH, Pool, clip_model, save_half, train_clip, train_tokenizer
from cones.synthetic.world import SHAPES, picture, scene

PICTURES, STEPS, HELD_OUT, SEED = 40_000, 2_000, 1_200, 1


def main() -> None:
    from transformers import CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    began = time.perf_counter()
    torch.manual_seed(SEED)
    images, captions, patches, labels = draw_pool()
    with fresh_folder(BACKBONES / "clip-tiny") as out:
        train_tokenizer(captions, out)
        tokenizer = CLIPTokenizer.from_pretrained(out)
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        )
        processor.save_pretrained(out)
        names = [f"a photo of a {shape}." for shape in SHAPES]
        ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids
        name_ids = tokenizer(names, padding=True, return_tensors="pt").input_ids
        model = clip_model(len(tokenizer))
        pool = Pool(normalise(images, processor), ids, torch.from_numpy(patches), torch.from_numpy(labels))
        with progress_bar("pretraining clip-tiny", STEPS) as advance:
            train_clip(model, pool, name_ids, STEPS, SEED, lambda step, loss: advance(note=f"loss {loss:.2f}"))
        save_half(model, out)
        accuracy = base_accuracy(model.float(), processor, name_ids)
    seconds = time.perf_counter() - began
    print(f"clip-tiny: zero-shot accuracy {accuracy:.3f} on {HELD_OUT} held-out base pictures, {seconds:.0f} s")


def draw_pool() -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Captioned scenes of one or two base things, with the class on each patch and that of the whole picture."""
    side = IMAGE_SIZE // PATCH
    images = np.empty((PICTURES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    patches = np.full((PICTURES, side, side), len(SHAPES))
    labels, captions = np.full(PICTURES, -100), []
    for i in range(PICTURES):
        rng = np.random.default_rng([SEED, 3, i])
        drawn = scene(rng, IMAGE_SIZE, [str(n) for n in rng.choice(SHAPES, 1 if rng.random() < 0.85 else 2)])
        images[i] = drawn.image
        captions.append(drawn.caption)
        for thing in drawn.things:
            covered = thing.mask.reshape(side, PATCH, side, PATCH).mean((1, 3))
            patches[i][covered > 0.2] = SHAPES.index(thing.name)
        if len(drawn.things) == 1:
            labels[i] = SHAPES.index(drawn.things[0].name)
    return images, captions, patches.reshape(PICTURES, -1), labels


def normalise(images: np.ndarray, processor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.inference_mode()
def base_accuracy(model, processor, name_ids: torch.Tensor) -> float:
    """Zero-shot accuracy on base pictures of a stream that pretraining does not draw from."""
    images = np.stack([picture(SEED, "test", i, IMAGE_SIZE, SHAPES[i % len(SHAPES)]).image for i in range(HELD_OUT)])
    features = model.get_image_features(normalise(images, processor)).pooler_output
    names = torch.nn.functional.normalize(model.get_text_features(name_ids).pooler_output, dim=-1)
    return float(((features @ names.T).argmax(1) == torch.arange(HELD_OUT) % len(SHAPES)).float().mean())
