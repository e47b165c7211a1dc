"""Which networks, beside the MLP, are the servers compared on? ResNet-18 and a small BERT-shaped encoder, in torch.

Weights are random and seeded: what is measured depends on shapes alone. Both end in a layer that keeps answers near 1,
so that one tolerance fits all. Source: He et al., https://arxiv.org/abs/1512.03385; Devlin et al.,
https://arxiv.org/abs/1810.04805.
"""

from typing import Final

import torch
from torch import Tensor, nn

CLASSES: Final = 1000
WIDTHS: Final = (64, 128, 256, 512)  # channels of ResNet-18's four stages, two blocks each

VOCABULARY: Final = 8192
POSITIONS: Final = 256
HIDDEN: Final = 256
HEADS: Final = 4
FEED_FORWARD: Final = 1024
LAYERS: Final = 6


class _Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.way = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.around: nn.Module = nn.Identity()
        if before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.way(x) + self.around(x))


class ResNet18(nn.Module):
    """[batch, 3, 224, 224] -> [batch, 1000]; 11.7 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        before = WIDTHS[0]
        for width in WIDTHS:
            blocks += [_Block(before, width), _Block(width, width)]
            before = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(WIDTHS[-1]),
            nn.Linear(WIDTHS[-1], CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of 1000 classes."""
        return self.layers(x)  # type: ignore[no-any-return] # a module's call is untyped


class _Layer(nn.Module):
    """Attention over all tokens, then a feed-forward network, each with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)])
        self.feed_forward = nn.Sequential(nn.Linear(HIDDEN, FEED_FORWARD), nn.GELU(), nn.Linear(FEED_FORWARD, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens = x.shape[0], x.shape[1]
        split = self.projections(x).reshape(batch, tokens, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)
        queries, keys, values = split[0], split[1], split[2]
        weights = torch.softmax(queries @ keys.transpose(-1, -2) * (HIDDEN // HEADS) ** -0.5, -1)
        x = self.norms[0](x + self.out((weights @ values).transpose(1, 2).reshape(batch, tokens, HIDDEN)))
        return self.norms[1](x + self.feed_forward(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """[batch, tokens] of token numbers -> [batch, 256]: six layers, then the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.places = nn.Parameter(torch.randn(1, POSITIONS, HIDDEN))
        self.norm = nn.LayerNorm(HIDDEN)
        self.layers = nn.Sequential(*(_Layer() for _ in range(LAYERS)))
        self.last = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector for each text."""
        embedded = self.norm(self.words(x) + self.places[:, : x.shape[1]])
        return self.last(self.layers(embedded).mean(1))  # type: ignore[no-any-return]
