"""BiomedCLIP's two encoders as one model of transformers, which has none."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel, VisionTextDualEncoderConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class BiomedClipModel(PreTrainedModel):
    """A BERT without its pooler and a ViT; [CLS] of each is projected to the joint space, text by two layers
    (Zhang et al. 2023, `cls_last_hidden_state_pooler` and `mlp` of open_clip)."""

    config_class = VisionTextDualEncoderConfig
    _supports_sdpa = True

    def __init__(self, config: VisionTextDualEncoderConfig) -> None:
        super().__init__(config)
        text, vision, joint = config.text_config, config.vision_config, config.projection_dim
        between = (text.hidden_size + joint) // 2
        self.text_model = BertModel(text, add_pooling_layer=False)
        self.vision_model = ViTModel(vision, add_pooling_layer=False)
        self.text_projection = nn.Sequential(
            nn.Linear(text.hidden_size, between, bias=False), nn.GELU(), nn.Linear(between, joint, bias=False)
        )
        self.visual_projection = nn.Linear(vision.hidden_size, joint, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.post_init()

    def get_image_features(self, pixel_values: Float[Tensor, "b 3 h w"]) -> BaseModelOutputWithPooling:
        """`pooler_output` (B, joint)."""
        hidden = self.vision_model(pixel_values).last_hidden_state
        return BaseModelOutputWithPooling(hidden, self.visual_projection(hidden[:, 0]))

    def get_text_features(
        self,
        input_ids: Int[Tensor, "c t"] | None = None,
        attention_mask: Int[Tensor, "c t"] | None = None,
        inputs_embeds: Float[Tensor, "c t d"] | None = None,
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` (C, joint), of ids or of token vectors; the mask is 0 at padding."""
        hidden = self.text_model(input_ids, attention_mask, inputs_embeds=inputs_embeds).last_hidden_state
        return BaseModelOutputWithPooling(hidden, self.text_projection(hidden[:, 0]))
