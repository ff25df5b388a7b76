"""PyTorch's weight files: only tensors are ever built from them, mapped where that is possible."""

from __future__ import annotations

import logging
import mmap
import pickle
import struct
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezoo_core.errors import CheckpointError, listing
from edgezoo_core.tensor_files import FLOATS, StoredTensor

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def open_pytorch(path: Path, file: str) -> dict[str, StoredTensor]:
    """Reads the names, shapes and dtypes of a PyTorch file, and where its tensors are in it.

    Args:
        path: Where it is.
        file: Its name inside the checkpoint.

    Raises:
        CheckpointError: It is truncated or damaged, or holds more than tensors.
    """
    records = _stored_records(path)
    tensors = _named_tensors(path, _unpickle(path, is_mappable=bool(records)))
    offsets = _find_offsets(path, tensors, records) if records else {}
    found = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        found[name] = StoredTensor(
            name=name,
            shape=tuple(tensor.shape),
            dtype=dtype if dtype in FLOATS else None,
            file=file,
            offset=offsets.get(name),
            size_bytes=tensor.numel() * tensor.element_size(),
            _get=partial(_identity, tensor),
        )
    return found


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _stored_records(path: Path) -> dict[int, int]:
    """Returns the records of a zip file that can be used in place: offset of the data -> bytes.

    None at all where it is no zip, was compressed after it was saved, or is big-endian: torch must
    not map such a file either. It maps compressed records as if they were not, so that weights come
    out wrong without a word, and dies of SIGSEGV as it swaps the bytes of a map (torch 2.13).
    """
    records = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as f:
            for info in archive.infolist():
                is_order = info.filename.endswith("/byteorder")
                if is_order and archive.read(info) != b"little":
                    return {}
                if info.compress_type != zipfile.ZIP_STORED:
                    return {}
                # The directory does not say how far the record's own header is padded.
                f.seek(info.header_offset + 26)
                records[info.header_offset + 30 + sum(struct.unpack("<HH", f.read(4)))] = (
                    info.file_size
                )
    except Exception as e:  # garbage; what is wrong with it is for torch.load to say
        logger.debug("%s: no zip file (%s)", path, e)
        return {}
    return records if sys.byteorder == "little" else {}


def _state_dict(value: Any) -> Any:
    is_wrapped = isinstance(value, dict) and isinstance(value.get("model_state_dict"), dict)
    return value["model_state_dict"] if is_wrapped else value


def _named_tensors(path: Path, value: Any) -> dict[str, torch.Tensor]:
    import torch

    state = _state_dict(value)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"{path} holds no state dict",
            remedy="save the model with torch.save(model.state_dict())",
        )
    others = sorted(
        repr(n)
        for n, v in state.items()
        if not isinstance(n, str) or not isinstance(v, torch.Tensor)
    )
    if others:
        raise CheckpointError(
            f"{path} holds entries that are no named tensors: {listing(others)}",
            remedy="save the model's state dict alone",
        )
    return state


def _find_offsets(
    path: Path, tensors: Mapping[str, torch.Tensor], records: Mapping[int, int]
) -> dict[str, int]:
    """Returns where in the file each tensor begins, for those that are in one piece there."""
    import torch

    try:
        # On meta nothing is read, and torch notes where each storage would have been read from.
        located = _state_dict(torch.load(path, map_location="meta", weights_only=True))
        starts = {
            name: located[name].untyped_storage()._checkpoint_offset
            for name, tensor in tensors.items()
            if _is_in_one_piece(tensor)
        }
    except Exception as e:  # e.g. a repacked file, whose storages are not in torch's order
        logger.info("%s: its tensors cannot be located (%s)", path, e)
        return {}
    # torch computes these offsets from how it would have written the file. Held against what it
    # mapped: all storages lie in one map, each as far from its beginning as its offset says.
    storages = {name: tensors[name].untyped_storage() for name in starts}
    bases = {s.data_ptr() - starts[n] for n, s in storages.items() if s.nbytes()}
    if len(bases) > 1 or any(base % mmap.PAGESIZE for base in bases):
        logger.info("%s: its tensors are not where torch would have written them", path)
        return {}
    return {
        name: start + tensors[name].storage_offset() * tensors[name].element_size()
        for name, start in starts.items()
        if start in records and storages[name].nbytes() <= records[start]
    }


def _is_in_one_piece(tensor: torch.Tensor) -> bool:
    import torch

    # A view can be marked as negated; its bytes are not.
    return tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_neg()


def _unpickle(path: Path, *, is_mappable: bool) -> Any:
    import torch

    # weights_only: nothing but tensors and plain containers is ever built from the file.
    if is_mappable:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as e:
            raise _refused_pickle(path, e) from e
        except Exception as mmap_failure:
            logger.info("%s: not mappable (%s); reading it whole", path, mmap_failure)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise _refused_pickle(path, e) from e
    except Exception as e:  # a damaged pickle can end in any exception at all
        raise CheckpointError(
            f"{path} is no readable PyTorch file ({type(e).__name__}: {e})",
            remedy="it is truncated or damaged: obtain the file again",
        ) from e


def _refused_pickle(path: Path, cause: Exception) -> CheckpointError:
    reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return CheckpointError(
        f"{path} is damaged, or holds more than tensors, and edgezoo runs no code of a checkpoint"
        f" ({reason})",
        remedy="obtain the checkpoint as safetensors",
    )
