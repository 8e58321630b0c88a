"""MetaCLIP 2 through transformers' `MetaClip2Model`."""

from functools import cached_property
from typing import Any, ClassVar

from cones.backbones.clip.clip import Clip
from cones.backbones.opening import opening


class MetaClip2(Clip):
    """A frozen MetaCLIP 2 (Chuang et al. 2025): CLIP's encoders with a vocabulary of many languages, XLM-V's."""

    model_type: ClassVar[str] = "metaclip_2"

    def _classes(self) -> tuple[Any, Any]:
        from transformers import MetaClip2Config, MetaClip2Model

        return MetaClip2Config, MetaClip2Model

    @cached_property
    def tokenizer(self) -> Any:
        """That of its tokenizer.json."""
        from transformers import PreTrainedTokenizerFast

        with opening(self.folder):
            return PreTrainedTokenizerFast.from_pretrained(self.folder, local_files_only=True)
