"""Weights made ready for a run: read into memory, or copied into huge pages or onto particular NUMA nodes.

    with prepared_weights(artifact, plan, preload=False, huge_pages=True, say=print) as copies:
        copies.of_instance(3)      # descriptors that instance 3 inherits and maps in place of the files

Nothing is copied where neither is asked for. The copies vanish with the last process that maps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

from ..console import Bar
from ..errors import UserError
from ..machine.address_range import HUGE_PAGE
from ..machine.memory import available_bytes
from ..machine.numa import MemoryPolicy, NumaPlan
from ..machine.shared_memory import SharedMemory, free_hugetlb_bytes
from .artifact import Artifact, SharedCopies, rest_offset
from .residency import TableMemory, fill, preload, table_memory


@dataclass(frozen=True)
class TableSetup:
    """What was done for the tables, for the report. memory: as it was found, or after --preload."""

    memory: TableMemory
    numa_policy: str | None
    copies: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        resident = self.memory.resident_bytes
        return {
            "tables_mb": self.memory.table_bytes / 1e6,
            "tables_in_memory_mb": None if resident is None else resident / 1e6,
            "memory_available_mb": self.memory.available_bytes / 1e6,
            "table_copies": list(self.copies),
            "numa_policy": self.numa_policy,
        }


@contextmanager
def prepared_weights(
    artifact: Artifact, plan: NumaPlan, *, preload: bool, huge_pages: bool, say: Callable[[str, str], object]
) -> Iterator[WeightCopies]:
    """say(label, text) tells what is found and done, before it takes long. Raises UserError where memory is short."""
    memory = table_memory(artifact, available_bytes())
    say("tables", memory.line())
    if plan.reason:
        say("numa", f"{plan.policy}: {plan.reason}" if plan.policy else plan.reason)
    with WeightCopies(artifact, plan, huge_pages=huge_pages, memory=memory) as copies:
        for text in copies.setup.copies:
            say("", text)
        if preload and copies.setup.copies:
            say("", "--preload has nothing left to do: the copies are in memory")
        elif preload:
            copies.preload()
            say("", copies.setup.memory.line())
        yield copies


class WeightCopies:
    """As a context: filled on entry, with a progress bar. Raises UserError where the copies do not fit."""

    def __init__(self, artifact: Artifact, plan: NumaPlan, *, huge_pages: bool, memory: TableMemory) -> None:
        self._artifact, self._plan, self._huge = artifact, plan, huge_pages
        self._policies: tuple[MemoryPolicy | None, ...] = plan.table_copies
        if not self._policies and huge_pages:
            self._policies = (None,)
        needed = len(self._policies) * artifact.manifest.table_range.nbytes
        # What is set aside for huge pages is not counted as available.
        if needed > memory.available_bytes and not (huge_pages and needed <= free_hugetlb_bytes()):
            asked = "--huge-pages" if huge_pages else f"--numa {plan.policy}"
            raise UserError(
                f"{asked}: {needed / 1e9:,.1f} GB of copies of the tables do not fit into the "
                f"{memory.available_bytes / 1e9:,.1f} GB of memory available. Leave it out, or free memory."
            )
        self.setup = TableSetup(memory, plan.policy, ())
        self._tables: list[SharedMemory] = []
        self._rest: dict[int, SharedMemory] = {}

    def __enter__(self) -> WeightCopies:
        try:
            for policy in self._policies:
                self._tables.append(self._copy_of_tables(policy))
            if self._plan.policy is not None:
                for node in self._plan.nodes:
                    self._rest[node] = self._copy_of_rest(MemoryPolicy((node,)))
        except BaseException:
            self._close()
            raise
        described = [self._describe(memory, policy) for memory, policy in zip(self._tables, self._policies)]
        self.setup = replace(self.setup, copies=tuple(described))
        return self

    def preload(self) -> None:
        """Read the tables' files in. Raises UserError where they do not fit."""
        artifact, memory = self._artifact, self.setup.memory
        with Bar("reading tables", artifact.manifest.table_range.piece_bytes, "B") as bar:
            preload(artifact.library, artifact.manifest, memory, bar.update)
        self.setup = replace(self.setup, memory=table_memory(artifact, available_bytes()))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def of_instance(self, instance: int) -> SharedCopies:
        copy = self._plan.table_copy_of[instance]
        if copy is None and self._huge:
            copy = 0
        rest = self._rest.get(self._plan.instance_nodes[instance])
        return SharedCopies(
            tables=None if copy is None else self._tables[copy].descriptor,
            parameters=None if rest is None else rest.descriptor,
        )

    def _describe(self, memory: SharedMemory, policy: MemoryPolicy | None) -> str:
        where = "" if policy is None else f", node{'s' * (len(policy.nodes) > 1)} {','.join(map(str, policy.nodes))}"
        pages = "small pages"
        if memory.is_hugetlb:
            pages = "huge pages of hugetlb, 2 MB each"
        elif self._huge:
            share = memory.huge_bytes / memory.nbytes
            pages = f"{share:.0%} in transparent huge pages of 2 MB"
            if share < 0.5:
                pages += f"; more with: sysctl vm.nr_hugepages={len(self._policies) * memory.nbytes // HUGE_PAGE}"
        return f"{memory.nbytes / 1e9:,.2f} GB of tables copied into shared memory{where}: {pages}"

    def _copy_of_tables(self, policy: MemoryPolicy | None) -> SharedMemory:
        memory = self._reserve(self._artifact.manifest.table_range.nbytes, policy)
        with Bar("copying tables", self._artifact.manifest.table_range.piece_bytes, "B") as bar:
            fill(self._artifact.library, self._artifact.manifest, memory.range, bar.update)
        memory.settle()
        return memory

    def _copy_of_rest(self, policy: MemoryPolicy) -> SharedMemory:
        """What the parameter file holds besides tables, byte for byte."""
        manifest = self._artifact.manifest
        first = rest_offset(manifest)
        memory = SharedMemory(manifest.parameter_bytes - first, huge=False, policy=policy)
        with self._artifact.library.with_name(manifest.parameter_file).open("rb", buffering=0) as file:
            file.seek(first)
            content = file.read()
        memory.range.writable_array[: len(content)] = memoryview(content)
        return memory

    def _reserve(self, nbytes: int, policy: MemoryPolicy | None) -> SharedMemory:
        try:
            return SharedMemory(nbytes, huge=self._huge, policy=policy)
        except OSError as error:
            raise UserError(f"{nbytes / 1e9:,.1f} GB of shared memory: {error.strerror}. Free memory.") from error

    def _close(self) -> None:
        for memory in (*self._tables, *self._rest.values()):
            memory.close()
        self._tables, self._rest = [], {}
