"""One compilation as frozen data: the settings, and what each phase of pipeline.py has found so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax, tirx

from ..data.scoring import Verdict
from ..kernels.isa import GENERIC, Family
from ..machine.cpu import host_flags
from ..machine.tile_state import tile_refusal
from ..model.dlrm import Dlrm
from ..model.precision import Numerics, weight_bytes
from ..runtime.parameters import ParameterSource
from ..schedules.machine_model import MachineModel
from ..schedules.rules import Schedules
from ..schedules.target import CpuTarget
from .conversion_journal import ConversionJournal
from .options import CompileSettings
from .plan import PlannedNetwork
from .precision_choice import Candidates, accepted
from .table_layout import TableLayout
from .verify import Verification


@dataclass(frozen=True, eq=False)
class Job:
    """A field is None until its phase has run. A field given beforehand stands: its phase is left out.

    reader: ONNX file -> Dlrm, needed where no model is given; progress: called with the name of each phase as it
    begins; quiet: print nothing for people.
    """

    settings: CompileSettings
    reader: Callable[[Path], Dlrm] | None = None
    progress: Callable[[str], object] = lambda name: None
    quiet: bool = False
    # known before a precision is chosen
    cpu: CpuTarget | None = None
    onnx_model: Path | None = None
    model: Dlrm | None = None
    candidates: Candidates | None = None
    judge: Callable[[Path], Verdict] | None = None  # of --precision auto
    # of one candidate from here on
    precision: str | None = None
    journal: ConversionJournal | None = None  # of large tables that are converted or copied
    isa: Family | None = None
    stored_bytes: int | None = None  # of the tables in this precision
    numerics: Numerics | None = None
    tables: TableLayout | None = None
    machine: MachineModel | None = None
    schedules: Schedules | None = None
    planned: PlannedNetwork | None = None  # stays None for TVM's default code generation
    functions: Mapping[str, tirx.PrimFunc] | None = None  # of our kernels
    module: tvm.IRModule | None = None
    mlp: ParameterSource | None = None
    executable: relax.VMExecutable | None = None
    staging: Path | None = None  # a directory beside the destination
    staged: Path | None = None  # the library in it
    verification: Verification | None = None  # stays None where this CPU cannot run the library
    verdict: Verdict | None = None  # of --precision auto
    items_per_s: Mapping[str, float | None] | None = None  # of its candidates by label; None: refused by the gate
    library: Path | None = None

    @property
    def family(self) -> Family:
        """Of the kernels' instructions; GENERIC if the CPU runs TVM's default code alone."""
        return self.isa or self.cpu.find_family(self.numerics.precision) or GENERIC

    @property
    def weight_bytes(self) -> int:
        """Of the layers as the library holds them."""
        return weight_bytes(self.model, self.numerics, self.family.parts)

    @property
    def label(self) -> str:
        """Of a candidate of --precision auto."""
        return f"{self.precision} on {self.family.name}"

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """Flags that the library needs: LLVM uses no tiles of its own accord."""
        return tuple(flag for flag in self.cpu.flags if self.family.tiles or not flag.startswith("amx_"))

    @property
    def file_name(self) -> str:
        """Of the library, without its suffix."""
        return self.settings.library.stem

    @property
    def kept_bytes(self) -> int:
        """Of the tables that an earlier process has written to the disk already."""
        return 0 if self.journal is None else self.journal.disk_bytes

    @property
    def runs_here(self) -> bool:
        return set(self.cpu_features) <= host_flags() and not (self.family.tiles and tile_refusal())

    @property
    def accepted(self) -> bool:
        return self.judge is None or accepted(self.verdict)
