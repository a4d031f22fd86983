"""The command `ino export`: a network of a run in files that other programs load."""

import re
from pathlib import Path
from typing import Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from ino.cli.shared_options import add_overwrite, plain_parser
from ino.errors import ConfigError


def export_parser() -> ArgumentParser:
    """The options of `ino export`."""
    parser = plain_parser(
        "Writes a network of a run as model.safetensors, config.json and README.md, for ino, timm "
        "and hubs; nothing is uploaded."
    )
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--network", choices=["student", "teacher"], default="student", help="of the run"
    )
    parser.add_argument(
        "--layer", type=str, metavar="N", help="last block, or all (default: 7, as ino-davis reads)"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "fp16"], default="fp32", help="of the stored weights"
    )
    parser.add_argument(
        "--image-size",
        type=str,
        metavar="HxW",
        help="pixels, such as 480x848: position embeddings are stored for this size, so that "
        "timm's features equal ours there (default: the size they were trained for)",
    )
    parser.add_argument(
        "--onnx",
        action=ActionYesNo,
        default=False,
        help="also write features.onnx and propagation.onnx for --image-size (extra onnx)",
    )
    parser.add_argument(
        "--protocol",
        default="ino-davis",
        help="that suits these weights, for the card and for ino segment",
    )
    parser.add_argument("--license", type=str, default="", help="of the weights, for the card")
    parser.add_argument(
        "--data", type=str, default="", help="what it learned from, in your words, for the card"
    )
    add_overwrite(parser)
    return parser


def export(options: Namespace) -> int:
    """Writes the files and names them."""
    chosen = options.export
    layer, image_size = parse_layer(chosen.layer), parse_size(chosen.image_size)

    from ino.export import export_run

    written = export_run(
        chosen.run,
        out=chosen.out,
        network=chosen.network,
        layer=layer,
        precision=chosen.precision,
        image_size=image_size,
        onnx=chosen.onnx,
        suits=chosen.protocol,
        license_name=chosen.license,
        data=chosen.data,
        overwrite=chosen.overwrite,
    )
    for path in written:
        print(f"{path} ({size_words(path.stat().st_size)})")
    return 0


def size_words(num_bytes: int) -> str:
    """A size as people read it: 12.3 MB, 4.5 kB."""
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.1f} kB"


def parse_layer(text: str | None) -> int | Literal["all"] | None:
    """The number of a block, `all`, or None where nothing was given.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    if text == "all":
        return "all"
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ConfigError(f"--layer is {text[:40]!r}; give the number of a block, from 1, or all")
    return int(text)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width, pixels, of HEIGHTxWIDTH.

    Raises:
        ConfigError: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if found is None:
        raise ConfigError(
            f"--image-size is {text[:40]!r}; give height and width in pixels, as in 480x848"
        )
    return int(found[1]), int(found[2])
