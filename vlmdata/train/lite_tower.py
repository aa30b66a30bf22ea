"""EfficientNet-Lite0 as a vision tower of transformers; importing this module makes its Auto classes know it.

`LlavaForConditionalGeneration.from_pretrained(<out>/model)` needs that import where the tower is this one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmdata import towers

WIDTH = 1280


class LiteTowerConfig(PreTrainedConfig):
    """cells: 49, 16 or 9, the tokens of a picture."""

    model_type = "vlmdata_lite0"

    def __init__(self, cells: int = 49, **others: Any) -> None:
        super().__init__(**others)
        self.cells = cells
        self.hidden_size = WIDTH
        self.image_size = towers.SIDE
        self.patch_size = towers.SIDE // round(cells**0.5)  # transformers' processor divides the sides by it


class LiteTower(PreTrainedModel):
    """The last layer's 7 x 7 cells, averaged (adaptively) to as many as asked for."""

    config_class = LiteTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: LiteTowerConfig) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(config)
        self.net = towers.fold(EfficientNet.from_name("efficientnet-lite0"))
        self.net._fc = torch.nn.Identity()
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """As EfficientNet itself begins."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """float32 [b, 3, 224, 224] to the one hidden state that there is, float32 [b, cells, 1280], 0 to 6."""
        side = round(self.config.cells**0.5)
        hidden = F.adaptive_avg_pool2d(self.net.extract_features(pixel_values), side).flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=(hidden,))


AutoConfig.register(LiteTowerConfig.model_type, LiteTowerConfig)
AutoModel.register(LiteTowerConfig, LiteTower)


def embedded(cells: int) -> LiteTower:
    """The tower with the weights of the package."""
    tower = LiteTower(LiteTowerConfig(cells))
    weights = towers.vision().net.state_dict()
    tower.net.load_state_dict({name: value for name, value in weights.items() if not name.startswith("_fc.")})
    return tower
