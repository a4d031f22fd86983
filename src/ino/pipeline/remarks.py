"""What a reader must know who sets a measured score beside a published one."""

from collections.abc import Iterable, Sequence

from ino.propagate.protocol import Protocol
from ino.propagate.protocols import replaced_fields

_MOST_NAMES = 3


def remarks_on(
    protocol: Protocol, *, sequences: Sequence[str] | None, precision: str = "fp32"
) -> tuple[str, ...]:
    """What was not done as the data set and the named protocol have it, each in a few words.

    Args:
        protocol: by which labels were carried.
        sequences: the ones that were chosen; None: all.
        precision: of the network.
    """
    remarks = []
    if sequences is not None:
        shown = ", ".join(sequences[:_MOST_NAMES])
        more = f" and {len(sequences) - _MOST_NAMES} more" * (len(sequences) > _MOST_NAMES)
        plural = "s" * (len(sequences) != 1)
        remarks.append(f"measured on {len(sequences)} sequence{plural} only ({shown}{more})")
    if replaced := replaced_fields(protocol):
        remarks.append(f"measured by {protocol.name} with {', '.join(replaced)}")
    if precision != "fp32":
        remarks.append(f"measured in {precision}")
    return tuple(remarks)


def remark_lines(rows: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """A line for each remark, with the labels of all rows that it holds for.

    Args:
        rows: label and remarks of each.
    """
    labels: dict[str, dict[str, None]] = {}
    for label, remarks in rows:
        for remark in remarks:
            labels.setdefault(remark, {})[label] = None
    return [f"{remark}: {', '.join(named)}" for remark, named in labels.items()]
