"""What visual prompts look at: the attention of the image encoder's last layer, as pictures in the report."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cones.backbones.clip.clip import Clip
from cones.common.errors import BackboneError
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.interfaces.protocols import Attends
from cones.tasks.classification.attention import LEAST, attention_sheet
from cones.tasks.classification.report import CLASSIFICATION
from cones.visuals.parts import Gallery
from cones.visuals.sheets import CELL, LINE


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_what_the_last_layer_attends_to(toy_clip: Path, layers: int) -> None:
    """As transformers hands it over where it computes attention step by step."""
    clip = Clip(toy_clip)
    generator = torch.Generator().manual_seed(0)
    pixels, tokens = torch.randn(2, 3, 32, 32, generator=generator), torch.randn(layers, 3, 32, generator=generator)
    clip.model.vision_model.config._attn_implementation = "eager"
    weights: list[Tensor] = []
    last = clip.model.vision_model.encoder.layers[-1].self_attn
    hook = last.register_forward_hook(lambda module, given, made: weights.append(made[1]))
    clip.encode(pixels, tokens)
    hook.remove()
    found = clip.attention(pixels, tokens)
    assert found.shape == (2, 1 + 3, 4, 4)
    whole = weights[0].mean(1)
    assert whole.shape == (2, 20, 20)
    torch.testing.assert_close(found.flatten(2), whole[:, :4, 4:])
    assert isinstance(clip, Attends)
    with pytest.raises(BackboneError, match="7 wide, for 1 layers"):
        clip.attention(pixels, torch.zeros(1, 3, 7))


def test_the_sheet_is_light_where_it_is_looked_at(encoded: Encoded) -> None:
    """A backbone that looks at the upper left with CLS, and with its prompts at the lower right."""
    clip = encoded.backbone()
    split = Split.open(encoded.folder.parent / "prepared/test")

    class Looking(type(clip)):  # type: ignore[misc]
        def attention(self, pixels: Tensor, visual_tokens: Tensor) -> Tensor:
            seen = torch.full((len(pixels), 3, 4, 4), 0.001)
            seen[:, 0, 0, 0] = seen[:, 1:, 3, 3] = 0.5
            return seen

    sheet = np.asarray(attention_sheet(Looking(clip.folder), split, torch.zeros(1, 2, 32)), float)
    assert sheet.shape == (3 * (CELL + LINE + 4), 8 * CELL, 3)
    plain, by_cls, by_prompts = (part[LINE + 2 :][:CELL] for part in np.split(sheet, 3))
    corner = slice(2, 12)
    opposite = slice(CELL - 12, CELL - 2)
    np.testing.assert_allclose(by_cls[corner, corner], plain[corner, corner], atol=3)
    np.testing.assert_allclose(by_prompts[opposite, opposite], plain[opposite, opposite], atol=3)
    np.testing.assert_allclose(by_cls[opposite, opposite], LEAST * plain[opposite, opposite], atol=3)


def test_the_report_has_a_card_for_each_row_with_prompts(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "pictures").mkdir()
    for row in ("coop", "upt"):
        (tmp_path / "rows" / f"{row}.csv").write_text("picture,actual,predicted\na,zorb,wug\n")
    parts = CLASSIFICATION.parts(tmp_path, ["coop", "upt"], "upt")
    assert len(parts) == 2  # nothing looked anywhere
    (tmp_path / "rows/attention").mkdir()
    (tmp_path / "rows/attention/upt.jpg").write_bytes(b"a sheet")
    *_, gallery = CLASSIFICATION.parts(tmp_path, ["coop", "upt"], "upt")
    assert isinstance(gallery, Gallery)
    assert [(card.image, list(card.lines)) for card in gallery.cards] == [(b"a sheet", [("upt", None)])]
