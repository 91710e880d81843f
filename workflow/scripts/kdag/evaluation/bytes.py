"""How likely models hold the same answers, whatever their tokenizers: nats per byte."""

from collections.abc import Sequence

import torch


def nll_per_byte(
    nll: torch.Tensor, row_lengths: Sequence[int], widths: Sequence[Sequence[int] | None]
) -> dict:
    """Negative log-likelihood of answers under one model, in nats per byte of their UTF-8.

    nll [N]: -ln p of each token of the answers given all before it, in nats, at temperature 1, row after row;
    row_lengths: the tokens of each row; widths: of each row the bytes of its tokens as `alignment.widths`
    gives them, or None where the model's tokens do not spell the answer (AlignmentError): such a row is not
    defined.

    A token that takes bytes, or none as a dummy prefix, counts; a control token (-1), such as an answer's
    end, does not, since it says no byte. `nats_per_byte` is all nats over all bytes of the rows that are
    defined; None without a byte. by_row: likewise of each row.

    A text has several tokenisations and this is the likelihood of one, so it is an upper bound of the text's
    own nats, as every published figure of bits per byte is.

    ValueError if the numbers of tokens differ.
    """
    if sum(row_lengths) != len(nll) or len(row_lengths) != len(widths):
        raise ValueError(
            f"{len(nll)} tokens, rows of {sum(row_lengths)}; {len(row_lengths)} rows, widths of {len(widths)}"
        )
    nats, sizes = [], []
    for row, taken in zip(nll.detach().double().cpu().split(list(row_lengths)), widths, strict=True):
        if taken is None:
            nats.append(None), sizes.append(0)
            continue
        taken = torch.as_tensor(taken)
        if len(taken) != len(row):
            raise ValueError(f"a row has {len(row)} tokens and widths of {len(taken)}")
        nats.append(float(row[taken >= 0].sum()))
        sizes.append(int(taken.clamp(min=0).sum()))
    counted = [row_nats for row_nats, size in zip(nats, sizes, strict=True) if size]
    return {
        "nats_per_byte": sum(counted) / sum(sizes) if counted else None,
        "bytes": sum(sizes),
        "undefined_rows": sum(not size for size in sizes),
        "by_row": [row_nats / size if size else None for row_nats, size in zip(nats, sizes, strict=True)],
    }
