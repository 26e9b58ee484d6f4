"""The script, played once and recorded; and cut into scenes, each of which can be played again from its own folder.

A scene is one step: the folder before it, and what there may be before and after. Faults are counted within a scene.
Further scenes open folders as a crash left them.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.disk import Disk, Everything, Subset
from tests.faults.faultio import Call, Calls, FaultIO, Op, read_record
from tests.faults.forked import Died, forked
from tests.faults.workload import Keys, Model, Session, Step, opening

CRASHES = 6  #: of each script
BEGIN, END = "begin", "end"  #: marks around a step; the second, where it was acknowledged


@dataclass(frozen=True, slots=True)
class Scene:
    """`image`: the folder before, which is under `keys`. `opened`: whether a client has it open as the step begins."""

    step: Step
    image: Path
    opened: bool
    before: tuple[Model, ...]
    keys: Keys

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def keys_after(self) -> Keys:
        """Open what the step leaves, finished or not."""
        return self.step.keys or self.keys

    def after(self) -> tuple[Model, ...]:
        return tuple(self.step.after(model) for model in self.before)

    def allowed(self) -> tuple[Model, ...]:
        """While the step is not acknowledged."""
        return (*self.before, *(model for model in self.after() if model not in self.before))


class Stage:
    """Where scenes are played: a scratch folder, the library, and the folder `data` that it watches."""

    def __init__(self, scratch: Path, io: FaultIO) -> None:
        self.scratch = scratch
        self.io = io
        self.data = scratch / "data"
        self.record = scratch / "record"
        self._calls: dict[int, list[Call]] = {}  # by the scene's identity
        io.watch(self.data)

    def reset(self, image: Path) -> None:
        self.clear()
        shutil.copytree(image, self.data)

    def clear(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)

    def begin(self, scene: Scene) -> Session:
        """Up to the step."""
        session = Session(self.data, scene.keys)
        if scene.opened:
            session.open()
            for name in scene.before[0]:
                session.collection(name)
        self.io.mark(BEGIN)
        return session

    def rehearse(self, scene: Scene) -> tuple[Disk, list[Call]]:
        """The scene without a fault: the disk before, and all calls on it. Raises RuntimeError where it fails."""
        self.reset(scene.image)
        disk = Disk(self.data)

        def run() -> None:
            with self.io.recording(self.record):
                session = self.begin(scene)
                scene.step.run(session)
                self.io.mark(END)

        if isinstance(died := forked(run), Died):
            raise RuntimeError(f"{scene.name}: {died}")
        return disk, read_record(self.record)

    def calls(self, scene: Scene) -> list[Call]:
        """Those of the step without a fault."""
        if id(scene) not in self._calls:
            calls = self.rehearse(scene)[1]
            marks = {call.path: position for position, call in enumerate(calls) if call.op is Op.MARK}
            self._calls[id(scene)] = calls[marks[BEGIN] + 1 : marks[END]]
        return self._calls[id(scene)]


@dataclass(frozen=True, slots=True)
class Recording:
    """`scenes` of the script; `calls`: of all of it, with a mark where a step begins and where it was acknowledged;
    `crashes`: scenes of opening what a crash of it left."""

    scenes: list[Scene]
    calls: list[Call]
    crashes: list[Scene] = field(default_factory=list)

    def allowed(self, position: int) -> tuple[Keys, tuple[Model, ...]]:
        """What there may be when only that many calls were made, and what opens it."""
        begun = done = 0
        for call in self.calls[:position]:
            if call.op is Op.MARK:
                begun, done = begun + (call.path == BEGIN), done + (call.path == END)
        if begun == 0:
            return self.scenes[0].keys, self.scenes[0].before
        scene = self.scenes[begun - 1]
        return scene.keys_after, scene.after() if begun == done else scene.allowed()


def record(stage: Stage, keys: Keys, steps: Sequence[Step], seed: int) -> Recording:
    """Plays the steps once. Raises RuntimeError where one fails without any fault."""
    images = Path(tempfile.mkdtemp(dir=stage.scratch))
    stage.clear()
    stage.data.mkdir()
    disk = Disk(stage.data)

    def run() -> None:
        session = Session(stage.data, keys)
        with stage.io.recording(stage.record):
            for number, step in enumerate(steps):
                shutil.copytree(stage.data, images / str(number), ignore=shutil.ignore_patterns("*-shm"))
                stage.io.mark(BEGIN)
                step.run(session)
                stage.io.mark(END)
            session.close()

    if isinstance(died := forked(run), Died):
        raise RuntimeError(f"script: {died}")
    scenes: list[Scene] = []
    model: Model = {}
    for number, step in enumerate(steps):
        scenes.append(Scene(step, images / str(number), number > 0, (model,), keys))
        model, keys = step.after(model), step.keys or keys
    calls = read_record(stage.record)
    _require_complete(disk, calls, stage.data)
    recording = Recording(scenes, calls)
    recording.crashes.extend(_crashes(stage, recording, seed))
    return recording


def _require_complete(disk: Disk, calls: Sequence[Call], folder: Path) -> None:
    """The record, followed to its end, gives the folder byte by byte: no call got past it. Raises RuntimeError."""
    for call in calls:
        disk.apply(call)
    state = disk.state(Everything())
    there = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if {name: bytes(content) for name, content in state.files.items()} != there:
        raise RuntimeError("record: it does not lead to the folder that was recorded")


def _crashes(stage: Stage, recording: Recording, seed: int) -> Iterator[Scene]:
    """At seeded places; with everything there, or a subset, by turns."""
    rng = random.Random(f"{seed} recovery")
    places = [i for i, call in enumerate(recording.calls) if call.kind & Calls.CHANGE]
    images = Path(tempfile.mkdtemp(dir=stage.scratch))
    chosen = sorted(rng.sample(places, min(CRASHES, len(places))))
    disk, position = Disk(recording.scenes[0].image), 0
    for number, place in enumerate(chosen):
        for call in recording.calls[position : place + 1]:
            disk.apply(call)
        position = place + 1
        image = images / str(number)
        disk.state(Subset(f"{seed} recovery {place}") if number % 2 else Everything()).write(image)
        keys, models = recording.allowed(place + 1)
        yield Scene(opening(f"open after a crash at call {place}"), image, False, models, keys)
