"""A vision tower of open_clip's as one of transformers; importing this module makes its Auto classes know it.

`LlavaForConditionalGeneration.from_pretrained(<out>/model)` needs that import where the tower is such a one.
"""

from typing import Any

import torch
from open_clip.model import _build_vision_tower  # what all of its models are built by
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class OpenClipTowerConfig(PreTrainedConfig):
    """model_cfg: embed_dim, vision_cfg and quick_gelu, as in open_clip_config.json. layer: of the transformer's blocks
    (of a CNN's stages) the one whose output is read; side, hidden_size: its tokens are side x side of this width."""

    model_type = "vlmdata_open_clip"

    def __init__(
        self,
        model_cfg: dict[str, Any] | None = None,
        layer: int = -2,
        image_size: int = 224,
        side: int = 7,
        hidden_size: int = 768,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.model_cfg, self.layer = model_cfg or {}, layer
        self.image_size, self.side, self.hidden_size = image_size, side, hidden_size
        self.patch_size = image_size // side


class OpenClipTower(PreTrainedModel):
    """The patches' tokens (the cells of a CNN) of one layer, without the class's token."""

    config_class = OpenClipTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OpenClipTowerConfig) -> None:
        super().__init__(config)
        model = config.model_cfg
        vision = {**model["vision_cfg"], "timm_model_pretrained": False}
        self.visual = _build_vision_tower(model["embed_dim"], vision, model.get("quick_gelu", False))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """As open_clip itself begins."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """float32 [b, 3, height, width] to the one hidden state that is read, float32 [b, side * side, hidden_size]."""
        hidden = grid(self.visual, pixel_values, self.config.layer).flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=(hidden,))


def grid(visual: Any, pixels: Tensor, layer: int) -> Tensor:
    """The output of a layer of open_clip's `visual`, float32 [b, width, rows, columns]. Raises IndexError, ValueError
    and AssertionError for a layer that there is not."""
    found = visual.forward_intermediates(pixels, indices=[layer], intermediates_only=True, output_fmt="NCHW")
    return found["image_intermediates"][0]


AutoConfig.register(OpenClipTowerConfig.model_type, OpenClipTowerConfig)
AutoModel.register(OpenClipTowerConfig, OpenClipTower)
