"""What a search step costs at GLIP-T's size, and what the cached pyramid and the missing text encoder save of it.

    python bench/glip_step.py        writes bench/results/glip_step.json, on a GPU glip_step_gpu.json

GLIP-T (b) has random weights, on which the time does not depend. A step is one picture of 800 x 1333 pixels with a
caption of 80 tokens: loss, gradients and update. Each kind of step runs in a process of its own, for its peak memory;
on a GPU where there is one, to which a cached pyramid comes from the CPU's memory at each step.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from common import now, write_results
from PIL import Image
from safetensors.torch import load_file, save_file

from cones.backbones.glip.glip import Glip
from cones.common.files import write_json
from cones.interfaces.pictures import Features, Geometry, Instances
from cones.interfaces.protocols import text_of
from cones.interfaces.texts import TextEmbeds, TextTokens
from cones.methods.cones.module import Cones
from cones.methods.context import ContextTokens
from cones.search.outcome import peak_memory_mb

VARIANT = "glip_atss_swin-t_b_fpn_dyhead_pretrain_obj365"
HEIGHT, WIDTH, TOKENS, CONTEXT = 800, 1333, 80, 4
NAMES = [f"w{i} w{i + 1} w{i + 2}" for i in range(9)] + ["w8 w9"]
"""With four context tokens each, ten names fill a caption of 80 tokens."""
THREADS, STEPS = 2, {"cpu": 3, "cuda": 20}
KINDS = {
    "cones_cached": "ConES on a cached pyramid",
    "cones_encoding": "ConES, the picture encoded at each step",
    "prompt_tuning_cached": "prompt tuning on a cached pyramid",
    "prompt_tuning_encoding": "prompt tuning, the picture encoded at each step",
}


def write_glip_t(folder: Path) -> None:
    """GLIP-T (b) with random weights, and a BERT-base whose vocabulary has ten words."""
    from transformers import BertConfig

    from cones.backbones.glip.convert import official_config, settings_of
    from cones.backbones.glip.parts import PARTS, build_part

    settings = settings_of(official_config(VARIANT))
    BertConfig().save_pretrained(folder / "text_encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *(f"w{i}" for i in range(11))]
    (folder / "text_encoder/vocab.txt").write_text("\n".join(words))
    write_json(folder / "config.json", settings)
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({name: build_part(name, settings, folder) for name in PARTS[:4]})
    save_file({k: v.contiguous() for k, v in parts.state_dict().items()}, folder / "model.safetensors")


def write_inputs(folder: Path) -> None:
    """What steps start from: the picture, its pyramid as the cache keeps it, and the text encoder's output."""
    glip = Glip(folder)
    pixels, geometry = glip.view([Image.effect_noise((WIDTH, HEIGHT), 60)], glip.canvas([(HEIGHT, WIDTH)]))
    text = glip.embed_text(NAMES, TextTokens(torch.randn(CONTEXT, glip.sites["text_tokens"].width)))
    assert len(text.owner) == TOKENS, len(text.owner)
    assert geometry[0].content == (HEIGHT, WIDTH), geometry
    pyramid = {name: level.half() for name, level in glip.encode(pixels).items()}
    save_file({**pyramid, "pixels": pixels, "text": text.embeds.detach(), "owner": text.owner}, folder / "inputs.st")


def step_of(kind: str, folder: Path, device: torch.device) -> Callable[[], None]:
    """One optimiser step of a kind, as the search loop makes it."""
    glip, held = Glip(folder, device), load_file(folder / "inputs.st")
    pixels, start, owner = held.pop("pixels"), held.pop("text"), held.pop("owner")
    pyramid = {name: level.float() for name, level in held.items()}
    canvas = (pixels.shape[2], pixels.shape[3])
    geometry = (Geometry((HEIGHT, WIDTH), (HEIGHT, WIDTH), canvas),)
    boxes = torch.tensor([[100.0, 80, 400, 500], [500, 200, 900, 700], [900, 100, 1000, 180], [50, 600, 130, 690]])
    objects = (Instances(boxes, torch.tensor([0, 3, 5, 9])),)
    if kind.startswith("cones"):
        method: torch.nn.Module = Cones(TextEmbeds(start, torch.ones(1, TOKENS, dtype=torch.bool), owner))
    else:
        method = ContextTokens(torch.randn(CONTEXT, start.shape[2]))
    method.to(device)
    optimiser = torch.optim.AdamW(method.parameters(), 2e-3, weight_decay=0.0)

    def step() -> None:
        seen = pyramid if kind.endswith("cached") else dict(glip.encode(pixels))
        features = Features(seen, torch.zeros(1, dtype=torch.long), instances=objects, geometry=geometry).to(device)
        glip.objective()(features, text_of(method, glip, NAMES, features)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def measure(kind: str, folder: Path) -> None:
    """Print the median seconds of a step after one that warms up, and the most memory the process held."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    device = Accelerator().device
    step, seconds = step_of(kind, folder, device), []
    for _ in range(STEPS[device.type] + 1):
        began = now(device)
        step()
        seconds.append(now(device) - began)
    found = {"seconds": round(median(seconds[1:]), 4), "slowest": round(max(seconds[1:]), 4)}
    print(json.dumps(found | {"peak_memory_mb": peak_memory_mb()}))


def main() -> None:
    load, found = os.getloadavg()[0], {}
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_glip_t(folder)
        write_inputs(folder)
        for kind, said in KINDS.items():
            command = [sys.executable, "-W", "ignore", __file__, kind, scratch]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            print(f"{said}: {found[kind]}", flush=True)
    seconds = {kind: of["seconds"] for kind, of in found.items()}
    results = {
        "what": {"height": HEIGHT, "width": WIDTH, "tokens": TOKENS, "classes": len(NAMES), "threads": THREADS},
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "steps": found,
        "encoding_over_cached": round(seconds["cones_encoding"] / seconds["cones_cached"], 2),
        "prompt_tuning_over_cones": round(seconds["prompt_tuning_cached"] / seconds["cones_cached"], 2),
        "prompt_tuning_encoding_over_cones_cached": round(
            seconds["prompt_tuning_encoding"] / seconds["cones_cached"], 2
        ),
    }
    write_results("glip_step", results)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
