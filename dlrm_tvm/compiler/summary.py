"""What compile.py tells people, as lines of text, and programs, as the result's fields."""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from pathlib import Path

from ..machine.tile_state import TILE_FLAGS
from ..model.computed_rows import ComputedRows
from ..model.dlrm import Dlrm
from ..model.precision import LARGEST
from ..runtime.manifest import Piece
from .instructions import why_no_tiles
from .job import Job
from .table_layout import TableLayout

_REASONS_SHOWN = 3


def card(job: Job) -> list[str]:
    """Precisions that auto leaves out, the model, and the target."""
    model, cpu, settings = job.model, job.cpu, job.settings
    sizes = f"MLPs {_megabytes(model.mlp_bytes)}, tables {_megabytes(model.table_bytes)}"
    work = f"{model.macs_per_item:,} multiply-adds per item"
    number = f", by its flags: its model number says {cpu.by_number}" if cpu.by_number else ""
    here = f" (this machine{number})" if cpu.is_host else ""
    return [
        *(_line("auto", f"not {precision}: {reason}") for precision, reason in job.candidates.refused.items()),
        *([_line("graph", f"{job.onnx_model}, which points into the weights")] if settings.torch_weights else []),
        _line("model", f"{model.name}: {len(model.tables)} tables × {model.dim}, {work}, {sizes}"),
        *(_line("warning", each) for each in model.warnings),
        _line("target", f"{cpu.cpu}{here}, batch {settings.batch_size}, {settings.precision}"),
    ]


def conversion(job: Job) -> list[str]:
    if job.precision == "fp32":
        return []
    sizes = f"{_megabytes(job.model.table_bytes)} become {_megabytes(job.stored_bytes)} in {job.precision}"
    return [_line("tables", f"{sizes}, written beside the library")]


def resumed(job: Job) -> list[str]:
    if job.journal is None or not job.journal.found:
        return []
    scales = f"{len(job.journal.largest)} of {len(job.model.tables)} tables' scales" if job.precision == "int8" else ""
    written = _megabytes(job.journal.kept.nbytes) + " of rows" if job.journal.kept else ""
    return [
        _line("tables", f"an earlier run left {' and '.join(filter(None, (scales, written)))}: going on from there")
    ]


def numerics(job: Job) -> list[str]:
    """The instruction, the layers that stay fp32, and where int8's scales come from."""
    numbers, layers = job.numerics, job.model.layers
    if numbers.precision == "fp32":
        return _fp32(job)
    wider = {at for at, layer in enumerate(numbers.layers) if layer.precision == "fp32"}
    share = sum(layers[at].weight.size for at in wider) / sum(layer.weight.size for layer in layers)
    named = f"layer{'s' * (len(wider) > 1)} {' and '.join(str(at + 1) for at in sorted(wider))} of {len(layers)}"
    stay = f"stay{'s' * (len(wider) == 1)} fp32 ({share:.1%} of the MLPs' weights)"
    return [
        _line("precision", f"{numbers.precision}: {job.family.name} found for {job.cpu.cpu}"),
        *_no_tiles(job),
        _line("", f"{named} {stay}:"),
        _line(
            "", "inputs of any size and the logit round worst there" if 0 in wider else "the logit rounds worst there"
        ),
        *_between_cross_layers(job),
        *_scales(job),
    ]


def _between_cross_layers(job: Job) -> list[str]:
    """What x0 and x_l are kept as, which cross layers both multiply and add to."""
    if not job.model.interaction.layers:
        return []
    kept = {None: "bf16", "dynamic": "fp32", "static": "int8, x0 with a scale of each vector, x_l of each column"}
    return [_line("", f"x0 and x_l between cross layers are {kept[job.numerics.activation_scales]}")]


def _fp32(job: Job) -> list[str]:
    """Nothing where the CPU has no tiles; a library of TVM's default code takes none."""
    without = _no_tiles(job)
    if job.settings.tuning_log_file is None or not (job.family.tiles or without):
        return []
    how = ": three bf16 parts a value, six tile products, as exact as FMA" if job.family.tiles else ""
    return [_line("precision", f"fp32: {job.family.name} found for {job.cpu.cpu}{how}"), *without]


def _no_tiles(job: Job) -> list[str]:
    """Why a CPU that has tiles does not use them."""
    reason = why_no_tiles(job.cpu, job.numerics.precision, job.model) if job.cpu.has(TILE_FLAGS[0]) else None
    return [_line("", f"no tiles: {reason}")] if reason else []


def _scales(job: Job) -> list[str]:
    kind = job.numerics.activation_scales
    if kind is None:
        return []
    source, more = f"found on {job.numerics.calibration}", []
    if kind == "dynamic":
        source = "of each row's own largest value: no data needed, outliers stay in their row"
        if job.family.tiles:  # writing rows twice disturbs the loads of tiles
            more = [_line("", "static ones, by --calibration-data FILE, are faster: on tiles by half")]
    if job.family.largest_weight < LARGEST:
        more = [*more, _line("", "weights of 7 bits, as products are added up in 16: there is no VNNI")]
    return [_line("scales", "weights per output, tables per table, activations"), _line("", f"{kind}, {source}"), *more]


def tables(job: Job) -> list[str]:
    """Where the library reads the tables, and why some cannot be used in place."""
    layout, lines = job.tables, [*_computed(job.model), *_in_place(job.tables)]
    if layout.copied is not None and not layout.converted:
        lines.append(_line("tables", f"{_megabytes(layout.copied.nbytes)} copied beside the library"))
    lines += [_line("", f"{name} is copied: {reason}") for name, reason in layout.reasons[:_REASONS_SHOWN]]
    if len(layout.reasons) > _REASONS_SHOWN:
        lines.append(_line("", f"and {len(layout.reasons) - _REASONS_SHOWN} more tables, for such reasons"))
    return lines


def _computed(model: Dlrm) -> list[str]:
    """What the tables are that no file holds, and what bags and indices they take."""
    found = [table for table in model.tables if isinstance(table.rows, ComputedRows)]
    if not found:
        return []
    kinds = ", ".join(dict.fromkeys(table.rows.origin.split(",")[0] for table in found))
    size = _megabytes(sum(table.rows.nbytes for table in found))
    rows = sum(table.num_rows for table in found)
    lines = [_line("tables", f"{len(found)} computed ({kinds}): {rows:,} rows, {size} in fp32")]
    if wraps := model.graph_inputs.wraps:
        last = min(last for _, last in wraps)
        lines.append(_line("", f"{len(wraps)} of them hash: indices up to {last:,} are taken modulo their rows"))
    if reason := model.graph_inputs.one_index:
        lines.append(_line("", f"bags of one index each alone: {reason}"))
    return lines


def _in_place(layout: TableLayout) -> list[str]:
    folders: dict[str, list[Piece]] = defaultdict(list)
    for piece in layout.pieces:
        folders[os.path.relpath(Path(piece.file).parent)].append(piece)
    lines = []
    for folder, pieces in folders.items():
        size = _megabytes(sum(piece.nbytes for piece in pieces))
        one = len(pieces) == 1
        where = os.path.relpath(pieces[0].file) if one else f"{len(pieces)} files of {folder}"
        lines.append(_line("tables", f"{size} used in place in {where}: keep {'that file' if one else 'those files'}"))
    return lines


def schedules(job: Job) -> list[str]:
    chosen = job.schedules
    if chosen.is_default:
        return [_line("schedules", "none: TVM's default code generation")]
    if job.family.tiles:
        network = chosen.network
        return [_line("schedules", f"by rule: blocks of {network.block_tiles} tiles of {network.mr} items")]
    log = os.path.relpath(job.settings.tuning_log_file)
    if chosen.tuned:
        lines = [_line("schedules", f"{len(chosen.tuned)} kernels tuned, {len(chosen.untuned)} by rule ({log})")]
    else:
        where = "" if job.cpu.is_host else " on such a CPU"
        by_rule = f"by rule (no records of these kernels on {job.cpu.cpu} in {log})"
        lines = [_line("schedules", f"{by_rule}; --tune{where} may find better")]
    if chosen.probed:
        network, ahead = chosen.probed.network, "" if chosen.probed.ahead else "not "
        share = chosen.probed.gflops / job.machine.peak_gflops
        steps = f", {chosen.probed.unroll} k a loop body" if chosen.probed.unroll else ""
        found = f"{network.mr} items a tile, {network.items} a block{steps}, weights {ahead}prefetched"
        lines.append(_line("", f"{found}: {share:.2f} of peak in the largest layer, so about that expected"))
    return lines


def machine(job: Job) -> list[str]:
    """What blocks are chosen by."""
    found = job.machine
    if job.settings.tuning_log_file is None or job.schedules is not None:
        return []
    l2 = f"L2 of {found.caches.l2 / (1 << 20):g} MB"
    if found.peak_gflops is None:
        why = "by name; rates are measured only on the CPU that compiles"
        if found.keeps(job.weight_bytes):
            why = "which keeps the weights"
        elif job.family.tiles:
            why = "by which the blocks of tiles are chosen"
        return [_line("machine", f"{l2}, {why}")]
    rates = f"{found.peak_gflops:,.0f} GFLOP/s of {job.family.name}, weights stream at {found.stream_gbps:.0f} GB/s"
    lines = [_line("machine", f"{rates}, {l2}: both measured on one core")]
    if found.fp32_gflops is not None and found.peak_gflops < found.fp32_gflops:
        peaks = f"{found.peak_gflops:,.0f} GFLOP/s where fp32 does {found.fp32_gflops:,.0f}"
        lines.append(_line("", f"bf16 without AMX is not worth it here: {peaks}. Try --precision fp32"))
    return lines


def verdict(job: Job) -> list[str]:
    if job.verdict is None:
        return []
    ratio = "undefined" if job.verdict.auc_ratio is None else f"{job.verdict.auc_ratio:.6f}"
    found = f"{job.label}: AUC ratio {ratio} on {job.verdict.items:,} items"
    return [_line("auto", f"{found}, {'passed' if job.accepted else 'refused'}")]


def left_out(job: Job, reason: Exception) -> list[str]:
    return [_line("auto", f"not {job.label}: {reason}")]


def ranking(job: Job) -> list[str]:
    """Of the candidate that is taken: how fast it is, and why not another one."""
    rates = dict(job.items_per_s)
    taken = f"{job.label} is taken, with {rates.pop(job.label):,.0f} items/s here"
    others = [
        f"{label} {'refused by its AUC ratio' if rate is None else f'slower, {rate:,.0f}'}"
        for label, rate in rates.items()
    ]
    return [_line("auto", "; ".join([taken, *others]))]


def written(job: Job) -> list[str]:
    return [
        _line("verified", _verified(job)),
        _line("wrote", f"{os.path.relpath(job.library)} with its manifest and parameters"),
    ]


def _verified(job: Job) -> str:
    done = job.verification
    if done is None:
        return f"no: this CPU cannot run code for {job.cpu.cpu}. Run accuracy.py on a machine that can."
    return f"{done.items} random items, largest error {done.max_abs_error:.2g} against the NumPy reference"


def result(job: Job, compile_s: float) -> dict[str, object]:
    """The fields of the last line on stdout."""
    untuned = job.model.layers if job.schedules.is_default else job.schedules.untuned
    return {
        "library": os.path.relpath(job.library),
        "batch_size": job.settings.batch_size,
        "precision": job.precision,
        "activation_scales": job.numerics.activation_scales,
        "candidates_items_per_s": job.items_per_s,
        "target_cpu": job.cpu.cpu,
        "tuned_kernels": len(job.schedules.tuned),
        "untuned_kernels": len(untuned),
        "max_abs_error": job.verification.max_abs_error if job.verification else None,
        "compile_s": round(compile_s, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def _line(label: str, text: str) -> str:
    return f"{label:<12}{text}"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
