"""Folders of base models from elsewhere: what their files ask for is not run, not fetched, and takes no more memory
than their weights; each is refused in one line."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cones.backbones.clip.clip import Clip
from cones.backbones.glip.glip import Glip
from cones.backbones.hub import base_hash
from cones.backbones.sd.sd import Diffusion
from cones.common.errors import BackboneError, ConesError

SHIPPED = Path(__file__).parent.parent / "models/backbones"


@dataclass
class Run:
    """What makes a file when it is unpickled."""

    file: Path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def open_clip(folder: Path) -> Any:
    clip = Clip(folder)
    return clip.model, clip.tokenizer, clip.processor


def open_glip(folder: Path) -> Any:
    glip = Glip(folder)
    return glip.canvas([(64, 64)]), glip.language_model


def open_sd(folder: Path) -> Any:
    sd = Diffusion(folder)
    return sd.schedule, sd.tokenizer, sd.vae


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "clip": ("clip-tiny", open_clip), "glip": ("glip-tiny", open_glip), "sd": ("sd-tiny", open_sd),
}  # fmt: skip
CODE = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}
CONFIGS: dict[str, tuple[str, str, Any, str]] = {
    "clip, code of its own": ("clip", "config.json", {"auto_map": CODE}, "asks for code"),
    "clip, a kernel of the hub": ("clip", "config.json", {"attn_implementation": "evil/kernel"}, "asks for code"),
    "clip, a kernel of its text": (
        "clip", "config.json", {"text_config": {"attn_implementation": "evil/kernel"}}, "text_config.attn_impl"),
    "clip, quantised": ("clip", "config.json", {"quantization_config": {"quant_method": "x"}}, "asks for code"),
    "clip, weights elsewhere": ("clip", "config.json", {"transformers_weights": "/etc/passwd"}, "or files"),
    "clip, another type": ("clip", "config.json", {"model_type": "pickle"}, "holds a `pickle` model"),
    "clip, text as text": ("clip", "config.json", {"text_config": "x"}, "cannot be opened"),
    "clip, no width": ("clip", "config.json", {"text_config": {"hidden_size": None}}, "cannot be opened"),
    "clip, no heads": ("clip", "config.json", {"text_config": {"num_attention_heads": 0}}, "cannot be opened"),
    "clip, an unknown layer": ("clip", "config.json", {"text_config": {"hidden_act": "os.system"}}, "cannot be opened"),
    "clip, no patches": ("clip", "config.json", {"vision_config": {"patch_size": 0}}, "cannot be opened"),
    "clip, too wide": ("clip", "config.json", {"text_config": {"hidden_size": 10**9}}, "at most 1048576"),
    "clip, wide": ("clip", "config.json", {"text_config": {"hidden_size": 2**20}}, "its files have"),
    "clip, more layers": ("clip", "config.json", {"text_config": {"num_hidden_layers": 100}}, "its files have"),
    "clip, layers for ever": ("clip", "config.json", {"text_config": {"num_hidden_layers": 10**6}}, "at most 512"),
    "clip, a list": ("clip", "config.json", [], "must hold a JSON object"),
    "clip, no JSON": ("clip", "config.json", "{", "is no readable JSON"),
    "clip, a deep one": ("clip", "config.json", "[" * 100_000, "is no readable JSON"),
    "clip, no finite number": ("clip", "config.json", {"logit_scale_init_value": float("nan")}, "is not finite"),
    "clip, a broken tokenizer": ("clip", "tokenizer.json", "{", "cannot be opened"),
    "clip, a broken processor": ("clip", "preprocessor_config.json", "[1]", "cannot be opened"),
    "clip, an adapter": ("clip", "adapter_config.json", {"base_model_name_or_path": "evil/x"}, "remove it"),
    "clip, weights of other folders": (
        "clip", "model.safetensors.index.json", {"weight_map": {"x": "../../x.safetensors"}}, "outside its folder"),
    "glip, code of its own": ("glip", "text_encoder/config.json", {"auto_map": CODE}, "asks for code"),
    "glip, a function for a part": ("glip", "config.json", {"neck": {"type": "os.system"}}, "asks for os.system"),
    "glip, weights from the web": (
        "glip", "config.json", {"backbone": {"init_cfg": {"type": "Pretrained", "checkpoint": "x"}}}, "Pretrained"),
    "glip, no divisor": ("glip", "config.json", {"preprocessing": {"divisor": 0}}, "cannot be opened .*divisor"),
    "glip, a huge scale": ("glip", "config.json", {"preprocessing": {"scale": [64, 10**6]}}, "cannot be opened.*scale"),
    "glip, no spread": ("glip", "config.json", {"preprocessing": {"std": [0, 0, 0]}}, "cannot be opened .*std"),
    "glip, no head": ("glip", "config.json", {"bbox_head": None}, "cannot be opened .*bbox_head"),
    "glip, tokens for ever": ("glip", "config.json", {"max_text_tokens": 10**6}, "cannot be opened .*max_text_tokens"),
    "glip, a wide text encoder": ("glip", "text_encoder/config.json", {"hidden_size": 4096}, "do not fill the model"),
    "glip, a broken tokenizer": ("glip", "text_encoder/tokenizer.json", "{", "cannot be opened"),
    "sd, another pipeline": ("sd", "model_index.json", {"_class_name": "os.system"}, "holds a `os.system`"),
    "sd, quantised": ("sd", "unet/config.json", {"quantization_config": {"quant_method": "x"}}, "asks for code"),
    "sd, no width": ("sd", "unet/config.json", {"cross_attention_dim": "x"}, "do not belong together"),
    "sd, a huge picture": ("sd", "unet/config.json", {"sample_size": 2**16}, "makes pictures of 524288 pixels"),
    "sd, a size of text": ("sd", "unet/config.json", {"sample_size": "64"}, "cannot be opened|pixels a side"),
    "sd, a wide decoder": ("sd", "vae/config.json", {"latent_channels": 2**20}, "its files have"),
    "sd, time without end": (
        "sd", "scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "at most 1048576"),
    "sd, an unknown schedule": ("sd", "scheduler/scheduler_config.json", {"beta_schedule": "x"}, "cannot be opened"),
    "sd, sentences without end": (
        "sd", "tokenizer/tokenizer_config.json", {"model_max_length": 10**9}, "do not belong together"),
}  # fmt: skip


def copied(name: str, folder: Path) -> Path:
    """A shipped base model whose weights are links."""

    def link(source: str, target: str) -> None:
        (os.symlink if source.endswith(".safetensors") else shutil.copyfile)(source, target)

    return Path(shutil.copytree(SHIPPED / name, folder / name, copy_function=link))


def changed(path: Path, change: Any) -> None:
    if isinstance(change, dict):
        sound = json.loads(path.read_text()) if path.exists() else {}
        nested = {k for k, v in change.items() if isinstance(v, dict) and isinstance(sound.get(k), dict)}
        change = sound | {k: sound[k] | v if k in nested else v for k, v in change.items()}
    path.write_text(change if isinstance(change, str) else json.dumps(change))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_base_model_that_asks_for_more_than_its_weights_is_refused(name: str, tmp_path: Path) -> None:
    kind, file, change, message = CONFIGS[name]
    folder = copied(KINDS[kind][0], tmp_path)
    changed(folder / file, change)
    with pytest.raises(BackboneError) as error:
        KINDS[kind][1](folder)
    assert re.search(message, str(error.value))
    assert len(str(error.value).splitlines()) == 1


SHARDS = {
    "clip, of any name": ("clip", "", "model.safetensors", "other.safetensors"),
    "clip, pickled": ("clip", "", "pytorch_model.bin", "pytorch_model-00001-of-00001.bin"),
    "sd, beside the whole": (
        "sd", "unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-00001-of-00001.safetensors"),
    "sd, text": ("sd", "text_encoder", "model.safetensors", "model-00001-of-00001.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_weights_that_the_hash_is_not_over_are_not_read(name: str, tmp_path: Path) -> None:
    """By an index of shards; something of the size of the weights is there for the hash."""
    kind, part, whole, shard = SHARDS[name]
    folder = copied(KINDS[kind][0], tmp_path)
    weights = next((folder / part).glob("*.safetensors"))
    tensors = load_file(weights)
    if shard.endswith(".bin"):
        torch.save(tensors, folder / part / shard)
    else:
        shutil.copyfile(weights, folder / part / shard)
    changed(folder / part / f"{whole}.index.json", {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)})
    if part != "unet":
        weights.rename(weights.with_name("model-of-no-use.safetensors"))
    before = base_hash(folder)
    (folder / part / shard).open("ab").write(b"another")
    assert base_hash(folder) == before
    with pytest.raises(BackboneError, match=rf"index.json names '{shard}' for weights, and read are .*; save"):
        _ = getattr(Diffusion(folder), part) if kind == "sd" else Clip(folder).model


def test_shards_that_the_hash_is_over_are_read(tmp_path: Path) -> None:
    """Also with an index of pickled ones beside, which a hub's folder may have."""
    folder = copied("clip-tiny", tmp_path)
    whole, shard = folder / "model.safetensors", "model-00001-of-00001.safetensors"
    changed(folder / f"{whole.name}.index.json", {"metadata": {}, "weight_map": dict.fromkeys(load_file(whole), shard)})
    changed(folder / "pytorch_model.bin.index.json", {"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}})
    whole.rename(folder / shard)
    before = base_hash(folder)
    sound = Clip(SHIPPED / "clip-tiny").model.state_dict()
    assert all(torch.equal(sound[name], one) for name, one in Clip(folder).model.state_dict().items())
    (folder / shard).unlink()
    assert base_hash(folder) != before


def test_libraries_and_classes_that_an_index_names_are_not_looked_at(tmp_path: Path) -> None:
    folder = copied("sd-tiny", tmp_path)
    changed(folder / "model_index.json", {"unet": ["os", "system"], "vae": ["subprocess", "run"], "x": ["evil", "X"]})
    assert type(Diffusion(folder).vae).__name__ == "AutoencoderKL"


SAMPLERS = ("os.system", "DiffusionPipeline", "FlowScheduler", ["os", "system"], None, "Scheduler")


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_sampler_is_one_of_diffusers(sampler: Any, tmp_path: Path) -> None:
    folder = copied("sd-tiny", tmp_path)
    changed(folder / "scheduler/scheduler_config.json", {"_class_name": sampler})
    with pytest.raises(BackboneError, match="asks for the sampler"):
        _ = Diffusion(folder)._pipeline


def test_a_pickle_for_weights_is_not_run(tmp_path: Path) -> None:
    folder = copied("clip-tiny", tmp_path)
    (folder / "model.safetensors").unlink()
    run, padding = Run(tmp_path / "ran"), bytes(8 << 20)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps([run, padding]))
    with pytest.raises(BackboneError, match="cannot be opened"):
        _ = Clip(folder).model
    torch.save({"a": run, "b": torch.zeros(2 << 20)}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be opened"):
        _ = Clip(folder).model
    assert not run.file.exists()
    pickle.loads(pickle.dumps(run))
    assert run.file.exists()


def test_a_folder_with_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    for kind, file in (("glip", "model.safetensors"), ("glip", "text_encoder/config.json"), ("sd", "unet/config.json")):
        folder = copied(KINDS[kind][0], tmp_path / file)
        (folder / file).unlink()
        os.mkfifo(folder / file)
        assert base_hash(folder)
        with pytest.raises(ConesError, match="lacks"):
            KINDS[kind][1](folder)


def test_the_shipped_ones_open(tmp_path: Path) -> None:
    for name, opens in KINDS.values():
        assert opens(copied(name, tmp_path))
