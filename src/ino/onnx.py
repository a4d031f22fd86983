"""ONNX graphs of dense features and of one step of propagation. Needs the extra `onnx`.

The graph of features takes uint8 RGB images and normalizes them itself. It is for images of one
size, because it contains the position embeddings of that size, and for batches of any size. The
graph of propagation is written by hand, not traced, so all its sizes may vary.
"""

import io
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ino.data.views import IMAGENET_MEAN
from ino.errors import ConfigError
from ino.models.masked_timm import MaskedTimm, timm_backbone
from ino.models.vit import VisionTransformer, interpolate_positions
from ino.propagate.protocols import Protocol

ImageSize = tuple[int, int]
"""Height and width, pixels."""

NEEDED = ("onnx", "onnxscript")
"""Modules that are needed to write ONNX files; onnxruntime is needed to run them."""

ROW_BLOCK = 8
"""Rows of the query that are compared at a time."""

_EVERYWHERE = 1 << 20
"""Stands for no window: larger than any map."""


def check_size(image_size: ImageSize, *, patch_size: int) -> None:
    """Raises ConfigError where a side is no multiple of the patch, or no patch fits."""
    if any(side < patch_size or side % patch_size for side in image_size):
        near = "x".join(str(max(1, round(side / patch_size)) * patch_size) for side in image_size)
        raise ConfigError(
            f"the image size {image_size[0]}x{image_size[1]} (height x width) must be multiples of "
            f"the patch of {patch_size} pixels; take {near}"
        )


def check_onnx() -> None:
    """Raises ConfigError where ONNX cannot be written."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--onnx needs {' and '.join(missing)}, which is not installed: run "
            "`uv sync --extra onnx` in the checkout of ino, or leave --onnx out"
        )


class FeatureGraph(nn.Module):
    """Network from images of one size, uint8 RGB, to L2-normalized features of the last block."""

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(
        self,
        vit: VisionTransformer | MaskedTimm,
        *,
        std: tuple[float, float, float],
        image_size: ImageSize,
    ) -> None:
        """The arguments are those of `features_onnx`."""
        super().__init__()
        check_size(image_size, patch_size=vit.patch_size)
        self.vit = vit
        self.grid = tuple(side // vit.patch_size for side in image_size)
        rows, columns = self.grid
        if isinstance(vit, MaskedTimm):
            self.read = timm_backbone(vit.network, arch=vit.arch, mean=vit.mean, std=vit.std)
        else:
            positions = interpolate_positions(vit.pos_embed.detach(), rows=rows, columns=columns)
            self.register_buffer("positions", positions.clone())
        mean = vit.mean if isinstance(vit, MaskedTimm) else IMAGENET_MEAN
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch rows columns dim"]:
        """Feature maps of RGB images."""
        pixels = (images.float() / 255 - self.mean) / self.std
        if isinstance(self.vit, MaskedTimm):
            maps = self.read.read(pixels.permute(0, 3, 1, 2), self.read.layer)
            return F.normalize(maps.permute(0, 2, 3, 1), dim=-1)
        patches = self.vit.patch_embed(pixels.permute(0, 3, 1, 2)).flatten(1, 2)
        first = self.vit.cls_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positions
        features = self.vit.head(self.vit.norm(self.vit.blocks(tokens)))[:, 1:]
        return F.normalize(features, dim=-1).unflatten(1, self.grid)


def features_onnx(
    vit: VisionTransformer | MaskedTimm,
    *,
    std: tuple[float, float, float],
    image_size: ImageSize,
) -> bytes:
    """The ONNX file of a network's last block: `images` -> `features`, see `FeatureGraph`.

    Of a network of timm it is the layer that `ino evaluate` reads.

    Args:
        vit: the network.
        std: deviation by which images are normalized.
        image_size: multiples of the patch.

    Raises:
        ConfigError: the size is no multiple of the patch, or the extra `onnx` is not installed.
    """
    graph = FeatureGraph(vit, std=std, image_size=image_size).eval()
    check_onnx()
    example = torch.zeros(2, *image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None, "dynamo=True gives a program"
    return program.model_proto.SerializeToString()


def propagation_graph(protocol: Protocol, *, row_block: int = ROW_BLOCK) -> Any:
    """The ONNX model of one step: (query, features, labels) -> result.

    `query` (rows, columns, dim) are the features of the frame to label; `features` (frames, rows,
    columns, dim) and `labels` (frames, rows, columns, channels) those of its context, the reference
    frame first; `result` (rows, columns, channels). All are float32; the graph does not normalize
    features. A frame that counts twice is given twice.

    The rows of the query are taken in blocks. Each block goes through the context frames, one after
    the other, and keeps the best k so far: the most that is ever stored are the affinities of a
    block to the rows of one frame that its windows reach.

    Args:
        protocol: gives top-k, window and temperature, which are constants of the graph.
        row_block: rows of the query that are compared at a time; changes no result.

    Raises:
        ConfigError: the protocol does not take the best k of all context frames together, all
            within one window.
    """
    if protocol.matching != "topk" or not protocol.reference_windowed:
        raise ConfigError(
            f"protocol {protocol.name} has no propagation step in ONNX: expected matching topk and "
            "a window in every context frame, as in ino-davis; choose such a protocol"
        )
    import onnx
    from onnx.parser import parse_model

    radius = _EVERYWHERE if protocol.radius is None else protocol.radius
    is_square = protocol.window == "square"
    text = _GRAPH
    for name, value in {
        "TOPK": protocol.topk,
        "BLOCK": row_block,
        "RADIUS": radius,
        "DISTANCE": _SQUARE if is_square else _CIRCLE,
        "FARTHEST": radius if is_square else radius**2 - (protocol.window == "circle"),
        "TEMPERATURE": repr(float(protocol.temperature)),
    }.items():
        text = text.replace(name, str(value))
    model = parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


_SQUARE = """
    away_rows = Abs (rows_apart)
    away_columns = Abs (columns_apart)
    distance = Max (away_rows, away_columns)
"""

# Squared, as is the farthest one within the window.
_CIRCLE = """
    rows_squared = Mul (rows_apart, rows_apart)
    columns_squared = Mul (columns_apart, columns_apart)
    distance = Add (rows_squared, columns_squared)
"""

# In a block: queries are those of rows start <= row < stop, keys those of rows low <= row < high of
# each context frame. Positions are row-major numbers, counted on from frame to frame.
_GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
propagation (
  float[rows, columns, dim] query,
  float[frames, rows, columns, dim] features,
  float[frames, rows, columns, channels] labels
) => (float[rows, columns, channels] result)
<
  bool yes = {1}, int64 zero = {0}, int64 one = {1}, int64[1] zeros = {0}, int64[1] ones = {1},
  int64[1] twos = {2}, int64[1] threes = {3}, int64[1] fours = {4}, int64[1] minus = {-1},
  int64[2] first_axes = {0, 1}, int64[2] as_row = {1, -1}, int64[2] as_column = {-1, 1},
  int64[1] topk = {TOPK}, int64 block = {BLOCK}, int64 radius = {RADIUS},
  int64 farthest = {FARTHEST}, float temperature = {TEMPERATURE}, float nothing = {-inf}
>
{
  sizes = Shape (features)
  frames1 = Slice (sizes, zeros, ones)
  rows1 = Slice (sizes, ones, twos)
  columns1 = Slice (sizes, twos, threes)
  dim1 = Slice (sizes, threes, fours)
  label_sizes = Shape (labels)
  channels1 = Slice (label_sizes, threes, fours)
  num_frames = Squeeze (frames1)
  num_rows = Squeeze (rows1)
  num_columns = Squeeze (columns1)
  num_tokens = Mul (num_rows, num_columns)
  as_features = Concat <axis = 0> (minus, dim1)
  as_labels = Concat <axis = 0> (minus, channels1)
  as_map = Concat <axis = 0> (rows1, columns1, channels1)
  table = Reshape (labels, as_labels)
  no_label = Concat <axis = 0> (zeros, channels1)
  empty = ConstantOfShape (no_label)
  padded_rows = Add (num_rows, block)
  padded_rows_1 = Sub (padded_rows, one)
  num_blocks = Div (padded_rows_1, block)
  tokens = Loop (num_blocks, yes, empty) <body = take_block (
    int64 number, bool go, float[done, channels] before
  ) => (bool go_on, float[done_more, channels] after) {
    go_on = Identity (go)
    start = Mul (number, block)
    start_and_block = Add (start, block)
    stop = Min (start_and_block, num_rows)
    low_or_negative = Sub (start, radius)
    low = Max (low_or_negative, zero)
    high_or_more = Add (stop, radius)
    high = Min (high_or_more, num_rows)
    low1 = Unsqueeze (low, zeros)
    high1 = Unsqueeze (high, zeros)
    start1 = Unsqueeze (start, zeros)
    stop1 = Unsqueeze (stop, zeros)

    query_block = Slice (query, start1, stop1, zeros)
    queries = Reshape (query_block, as_features)
    first_query = Mul (start, num_columns)
    last_query = Mul (stop, num_columns)
    query_places = Range (first_query, last_query, one)
    first_key = Mul (low, num_columns)
    last_key = Mul (high, num_columns)
    key_places = Range (first_key, last_key, one)
    query_column = Reshape (query_places, as_column)
    key_row = Reshape (key_places, as_row)
    row_of_query = Div (query_column, num_columns)
    row_of_key = Div (key_row, num_columns)
    column_of_query = Mod (query_column, num_columns)
    column_of_key = Mod (key_row, num_columns)
    rows_apart = Sub (row_of_query, row_of_key)
    columns_apart = Sub (column_of_query, column_of_key)
    DISTANCE
    within = LessOrEqual (distance, farthest)

    num_keys = Sub (last_key, first_key)
    num_keys1 = Unsqueeze (num_keys, zeros)
    num_found = Min (topk, num_keys1)
    num_queries = Sub (last_query, first_query)
    num_queries1 = Unsqueeze (num_queries, zeros)
    as_best = Concat <axis = 0> (num_queries1, topk)
    none_found = Expand (nothing, as_best)
    nowhere = Expand (zero, as_best)
    best, best_places = Loop (num_frames, yes, none_found, nowhere) <body = take_frame (
      int64 frame, bool go_frame, float[queries, k] best_before, int64[queries, k] places_before
    ) => (bool go_on_frame, float[queries, k] best_after, int64[queries, k] places_after) {
      go_on_frame = Identity (go_frame)
      frame_next = Add (frame, one)
      frame1 = Unsqueeze (frame, zeros)
      frame_next1 = Unsqueeze (frame_next, zeros)
      from = Concat <axis = 0> (frame1, low1)
      to = Concat <axis = 0> (frame_next1, high1)
      key_block = Slice (features, from, to, first_axes)
      keys = Reshape (key_block, as_features)
      keys_across = Transpose <perm = [1, 0]> (keys)
      affinity = MatMul (queries, keys_across)
      admitted = Where (within, affinity, nothing)
      found, places_in_block = TopK <axis = 1> (admitted, num_found)
      frame_start = Mul (frame, num_tokens)
      first_place = Add (frame_start, first_key)
      places = Add (places_in_block, first_place)
      both = Concat <axis = 1> (best_before, found)
      both_places = Concat <axis = 1> (places_before, places)
      best_after, order = TopK <axis = 1> (both, topk)
      places_after = GatherElements <axis = 1> (both_places, order)
    }>

    logits = Div (best, temperature)
    weights = Softmax <axis = 1> (logits)
    weight_columns = Unsqueeze (weights, twos)
    gathered = Gather <axis = 0> (table, best_places)
    weighted = Mul (gathered, weight_columns)
    block_labels = ReduceSum <keepdims = 0> (weighted, ones)
    after = Concat <axis = 0> (before, block_labels)
  }>
  result = Reshape (tokens, as_map)
}
"""
