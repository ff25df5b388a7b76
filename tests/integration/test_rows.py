"""The arithmetic over rows, byte for byte against ai-edge-quantizer and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from edgezoo_core.conversion import rows
from edgezoo_core.errors import ConversionError
from edgezoo_core.recipe import FORMATS

STORED = [name for name, fmt in FORMATS.items() if fmt is not None]
WHOLE_ROWS = [name for name in STORED if not (FORMATS[name].block_size or FORMATS[name].is_float)]
BLOCKS = [name for name in STORED if FORMATS[name].block_size]
OPERATORS = ["FULLY_CONNECTED", "EMBEDDING_LOOKUP"]
GREATEST = float(np.finfo(np.float32).max)


def tensor(name, shape, dtype, buffer=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, buffer
    return made


def one_operator(values, operator):
    """A .tflite of one operator with this weight."""
    model, graph, step, code = (
        schema.ModelT(),
        schema.SubGraphT(),
        schema.OperatorT(),
        schema.OperatorCodeT(),
    )
    count, columns = values.shape
    kinds = schema.TensorType
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, operator)
    code.version = 1
    weight = tensor("weight", values.shape, kinds.FLOAT32, 1)
    if operator == "FULLY_CONNECTED":
        graph.tensors = [tensor("input", (1, columns), kinds.FLOAT32), weight]
        graph.tensors.append(tensor("output", (1, count), kinds.FLOAT32))
        step.inputs = [0, 1, -1]
        step.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        step.builtinOptions = schema.FullyConnectedOptionsT()
    else:
        graph.tensors = [tensor("input", (1,), kinds.INT32), weight]
        graph.tensors.append(tensor("output", (1, columns), kinds.FLOAT32))
        step.inputs = [0, 1]
    step.outputs, step.opcodeIndex = [2], 0
    graph.inputs, graph.outputs, graph.operators = [0], [2], [step]
    graph.name = "main"
    empty, filled = schema.BufferT(), schema.BufferT()
    filled.data = np.frombuffer(values.tobytes(), np.uint8)
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [empty, filled]
    return bytes(tfl_flatbuffer_utils.flatbuffer_utils.convert_object_to_bytearray(model))


def quantized(values, fmt, operator="FULLY_CONNECTED"):
    """(bytes of the weight, bytes of its scales) as ai-edge-quantizer writes them."""
    engine = quantizer.Quantizer(one_operator(values, operator))
    granularity = qtyping.QuantGranularity.CHANNELWISE
    algorithm = quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT
    if fmt.is_float:
        granularity = qtyping.QuantGranularity.TENSORWISE
        algorithm = quantizer.AlgorithmName.FLOAT_CASTING
    elif fmt.block_size:
        granularity = qtyping.QuantGranularity[f"BLOCKWISE_{fmt.block_size}"]
    add = engine.add_dynamic_config if fmt.is_dynamic else engine.add_weight_only_config
    add(".*", qtyping.TFLOperationName(operator), fmt.bits, granularity, algorithm)
    with np.errstate(all="ignore"):  # it divides by scales of zero
        content = engine.quantize(
            enable_progress_bar=False, enable_progress_report=False
        ).quantized_model
    model = tfl_flatbuffer_utils.read_model(bytearray(content))
    tensors = model.subgraphs[0].tensors
    data = {t.name: None if t.buffer == 0 else model.buffers[t.buffer].data for t in tensors}
    weight = next(t for t in tensors if t.name == b"weight")
    code = {"float16": "FLOAT16", "int8": "INT8", "int4": "INT4"}
    kind = f"{'float' if fmt.is_float else 'int'}{fmt.bits}"
    assert weight.type == getattr(schema.TensorType, code[kind])
    if fmt.is_float:
        scales = b""
    elif fmt.block_size:
        scales = bytes(data[b"weight_scales"])
    else:
        scales = np.asarray(weight.quantization.scale, np.float32).tobytes()
        assert not np.any(weight.quantization.zeroPoint)
    return bytes(data[b"weight"]), scales


def encoded(result):
    """The same of a result of `rows`."""
    assert result.data.flags.c_contiguous
    data = result.data.reshape(-1).view(np.uint8).tobytes()
    return data, b"" if result.scales is None else result.scales.tobytes()


def assert_same(values, fmt, operator="FULLY_CONNECTED"):
    data, scales = encoded(rows.encode(values, fmt))
    expected_data, expected_scales = quantized(values, fmt, operator)
    assert scales == expected_scales
    assert data == expected_data


def kinds_of_rows(columns, fmt):
    """float32 [n, columns]: a row of every kind that the format takes."""
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((8, columns))
    outlier = 0.01 * rng.standard_normal(columns)
    outlier[columns // 2] = -3.0
    limit = 127 if fmt.bits == 8 else 7
    ties = np.arange(columns) % (2 * limit) - limit + 0.5
    ties[:: min(columns, 32)] = limit  # every block and row has a scale of one
    made = [
        *(0.02 * normal),
        np.full(columns, 0.3),
        np.full(columns, -0.3),
        np.zeros(columns),
        np.copysign(0.0, normal[0]),
        np.abs(normal[1]),
        -np.abs(normal[2]),
        outlier,
        ties,
        -ties,
        ties * 2.0**-9,
        1e-40 * normal[3],  # denormal, and below the least bound
        np.full(columns, 1e-45),
        *(10.0**exponent * normal[4] for exponent in range(-12, 4)),
        normal[5] * 10.0 ** rng.uniform(-12, 3, columns),
        np.where(np.arange(columns) < columns // 2, 0, normal[6]),
    ]
    if not fmt.is_float and not fmt.block_size:
        sign = np.where(normal[7] > 0, 1, -1)
        made += [1e30 * normal[7], sign * GREATEST / 2, sign * GREATEST, np.full(columns, GREATEST)]
    return np.stack(made).astype(np.float32)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", STORED)
def test_same_bytes_as_the_quantizer(name, operator):
    values = kinds_of_rows(512, FORMATS[name])
    assert len(values) > 30
    assert_same(values, FORMATS[name], operator)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("shape", [(1, 256), (7, 256), (3, 768), (300, 1024)])
def test_same_bytes_in_every_shape(name, shape):
    values = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    assert_same(values, FORMATS[name])


@pytest.mark.parametrize("name", ["fp16", *WHOLE_ROWS])
@pytest.mark.parametrize("columns", [2, 10, 34, 202, 203, 7, 1])
def test_same_bytes_in_short_and_odd_rows(name, columns):
    fmt = FORMATS[name]
    values = kinds_of_rows(columns, fmt)
    if fmt.bits == 4 and columns % 2:
        with pytest.raises(ConversionError, match="do not end at a byte") as caught:
            rows.encode(values, fmt)
        assert "--engine litert" in caught.value.remedy
    else:
        assert_same(values, fmt)


@pytest.mark.parametrize("name", WHOLE_ROWS)
def test_nothing_to_clip_in_whole_rows(name):
    # Bounds of every exponent and any mantissa, denormals included, with their neighbours.
    rng = np.random.default_rng(3)
    bounds = rng.integers(1, 0x7F800000, 40_000, np.uint32).view(np.float32)
    below = np.nextafter(bounds, np.float32(0))
    values = np.stack([bounds, -bounds, below, -below], axis=1)
    assert_same(values, FORMATS[name])
    whole = rows.encode(values, FORMATS[name])
    if FORMATS[name].bits == 8:
        assert whole.data.min() == -127


@pytest.mark.parametrize("name", BLOCKS)
def test_coarse_scales_of_blocks_clip(name):
    # Around the magnitudes where float16 scales turn subnormal, zero, or coarse enough to clip.
    fmt = FORMATS[name]
    rng = np.random.default_rng(4)
    bounds = 7 * 2.0 ** np.sort(rng.uniform(-27, -12, (3000, 1)), axis=0)
    values = rng.uniform(-1, 1, (3000, fmt.block_size)) * bounds
    values[:, :1], values[:, 1:2] = bounds, -bounds
    values = values.astype(np.float32)
    # In chunks of like magnitudes: whether to clip is decided for many rows at once.
    chunks = [encoded(rows.encode(values[k : k + 10], fmt)) for k in range(0, 3000, 10)]
    whole = b"".join(data for data, _ in chunks), b"".join(scales for _, scales in chunks)
    assert whole == quantized(values, fmt)
    assert (np.frombuffer(whole[0], np.uint8) == 0x87).any()  # 7 and -8: only clipping yields -8


@pytest.mark.parametrize("name", BLOCKS)
def test_scales_of_blocks_round_as_bfloat16(name):
    # Bounds whose scale is on, or next to, the middle of two bfloat16.
    fmt = FORMATS[name]
    scales = (np.arange(0x3800, 0x3900, dtype=np.uint32) << 16) + 0x8000
    scales = np.concatenate([scales, scales - 1, scales + 1]).view(np.float32)
    values = np.zeros((len(scales), fmt.block_size), np.float32)
    values[:, 3] = 7 * scales
    assert_same(values, fmt)


@pytest.mark.parametrize("height", [1, 7, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_chunks_make_the_whole(name, height):
    values = np.random.default_rng(6).standard_normal((230, 1280)).astype(np.float32)
    whole = encoded(rows.encode(values, FORMATS[name]))
    chunks = [
        encoded(rows.encode(values[k : k + height], FORMATS[name])) for k in range(0, 230, height)
    ]
    assert b"".join(data for data, _ in chunks) == whole[0]
    assert b"".join(scales for _, scales in chunks) == whole[1]


@pytest.mark.parametrize("dtype", rows.DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_convert_is_widen_and_encode(name, dtype):
    values = torch.randn(140, 1280, generator=torch.Generator().manual_seed(8))
    values[3] *= 1e-6  # subnormal as float16
    raw = values.to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    assert len(raw) == values.numel() * rows.DTYPES[dtype]
    expected = rows.encode(rows.widen(raw, dtype, 1280), FORMATS[name])
    result = rows.convert(memoryview(raw), dtype, 1280, FORMATS[name])
    assert encoded(result) == encoded(expected)
    if name == "none":
        floats = values.to(getattr(torch, dtype)).float().numpy()
        assert result.data.dtype == np.float32
        assert result.data.tobytes() == floats.tobytes()


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_half_widens_as_in_torch(dtype, finite):
    stored = torch.arange(1 << 16).to(torch.uint16).view(getattr(torch, dtype))
    if finite:
        stored = stored[torch.isfinite(stored)]
    raw = stored.view(torch.uint8).numpy()
    result, expected = rows.widen(raw, dtype, 2), stored.float().numpy().reshape(-1, 2)
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)
    if finite:  # the sign of zero, too
        assert result.tobytes() == expected.tobytes()


def test_doubles_round_as_in_torch():
    rng = np.random.default_rng(9)
    stored = rng.standard_normal(4000) * 10.0 ** rng.uniform(-50, 50, 4000)
    middle = (np.float64(np.float32(1.1)) + np.nextafter(np.float32(1.1), np.float32(2))) / 2
    stored[:6] = [middle, -middle, GREATEST * 1.1, -1e300, np.nan, 1e-46]
    expected = torch.from_numpy(stored).float().numpy()
    result = rows.widen(stored.tobytes(), "float64", 4000)
    np.testing.assert_array_equal(result[0], expected)


def test_float32_is_not_copied():
    raw = np.arange(48, dtype=np.uint8)
    assert np.shares_memory(rows.widen(raw, "float32", 3), raw)
    assert np.shares_memory(rows.convert(raw, "float32", 3, None).data, raw)


def test_no_rows():
    for name, fmt in FORMATS.items():
        result = rows.encode(np.empty((0, 256), np.float32), fmt)
        assert result.data.size == 0, name
    assert rows.convert(b"", "bfloat16", 256, FORMATS["dynamic_int8"]).data.shape == (0, 256)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", rows.DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_unusable_value_is_found(name, dtype, value):
    values = torch.randn(300, 512, generator=torch.Generator().manual_seed(2))
    values[277, 409] = value  # in the second slab
    values[278, 5] = np.nan
    raw = values.to(getattr(torch, dtype)).view(torch.uint8).numpy()
    with pytest.raises(rows.UnusableValueError) as caught:
        rows.convert(raw.tobytes(), dtype, 512, FORMATS[name])
    assert (caught.value.row, caught.value.column) == (277, 409)
    np.testing.assert_equal(caught.value.value, value)
    assert "row 277, column 409" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("value", [65536.0, -1e30])
def test_overflow_of_float16_is_found(dtype, value):
    values = torch.randn(300, 512, generator=torch.Generator().manual_seed(2))
    values[299, 1] = value
    stored = values.to(getattr(torch, dtype))
    with pytest.raises(rows.UnusableValueError) as caught:
        rows.convert(stored.view(torch.uint8).numpy(), dtype, 512, FORMATS["fp16"])
    assert (caught.value.row, caught.value.column) == (299, 1)
    assert caught.value.value == float(stored[299, 1])


def test_the_greatest_float16_is_used():
    fits = np.array([[65504, -65504, 65519.996, 6e-8]], np.float32)
    assert_same(fits, FORMATS["fp16"])
    with pytest.raises(rows.UnusableValueError):
        rows.encode(np.array([[65520]], np.float32), FORMATS["fp16"])


@pytest.mark.parametrize("name", BLOCKS)
def test_overflow_of_a_blocks_scale_is_found(name):
    values = np.random.default_rng(1).standard_normal((300, 512)).astype(np.float32)
    values[280, 400] = -7 * 65280
    assert_same(values, FORMATS[name])
    values[280, 400] = -7 * 65408  # as a bfloat16 its scale is 65536
    with pytest.raises(rows.UnusableValueError) as caught:
        rows.encode(values, FORMATS[name])
    assert (caught.value.row, caught.value.column) == (280, 400)
    assert caught.value.value == -7 * 65408
