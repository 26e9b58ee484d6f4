"""Three kinds of trouble, each at every I/O call: the power goes, the disk refuses, the process is killed.

A campaign yields its runs one after the other: a name, by which a run can be repeated alone, and a function that makes
it. The function must be called before the next run is asked for, or not at all; it gives None where there was nothing
to see: the fault met no call, or an equal state has been examined already.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from he_engine.errors import HesearchError, ReadOnlyError
from tests.faults.disk import Choice, Data, Disk, Durable, Everything, Names, State, Subset
from tests.faults.faultio import ERRORS, KILLS, Call, Calls, Fault, Op, read_record
from tests.faults.forked import Died, forked
from tests.faults.scenes import BEGIN, Recording, Scene, Stage
from tests.faults.verdict import Verdict, examine, observe, probe
from tests.faults.workload import Keys, Model, Session

Run = tuple[str, Callable[[], Verdict | None]]
Campaign = Callable[[Stage, Recording, int], Iterator[Run]]

SUBSETS = 3  #: seeded states at each cut, beside the four that are always tried
REHEARSAL = "rehearsal"  #: the run of a scene that fails without any fault, in every sample
_WATCHED = "watched until here"
_SQLITE_FOLDER = ""
_INJECTED = (errno.EIO, errno.ENOSPC)


def _unplayable(error: RuntimeError) -> Verdict:
    return Verdict(problems=[str(error)])


def _examined(stage: Stage, keys: Keys, allowed: Sequence[Model]) -> Verdict:
    def run() -> Verdict:
        verdict = Verdict()
        examine(stage.data, keys, allowed, verdict)
        return verdict

    result = forked(run)
    return Verdict(problems=[str(result)]) if isinstance(result, Died) else result


# ---- the power goes ----------------------------------------------------------------------------------------
def power(stage: Stage, recording: Recording, seed: int) -> Iterator[Run]:
    """After every call of the script, and of the opening of what a crash left."""
    yield from _cuts(stage, Disk(recording.scenes[0].image), recording.calls, recording.allowed, f"{seed} script")
    for number, scene in enumerate(recording.crashes):
        try:
            disk, calls = stage.rehearse(scene)
        except RuntimeError as error:
            yield f"crash-{number}/{REHEARSAL}", partial(_unplayable, error)
            continue
        yield from _cuts(stage, disk, calls, lambda _, s=scene: (s.keys, s.before), f"{seed} crash-{number}")  # type: ignore[misc]


def _cuts(
    stage: Stage,
    disk: Disk,
    calls: Sequence[Call],
    allowed: Callable[[int], tuple[Keys, Sequence[Model]]],
    seed: str,
) -> Iterator[Run]:
    seen: set[object] = set()

    def run(choice: Choice, position: int) -> Verdict | None:
        state, (keys, models) = disk.state(choice), allowed(position)
        if (key := (state.key, keys, repr(models))) in seen:
            return None
        seen.add(key)
        return _after_a_crash(stage, state, keys, models)

    part = seed.rpartition(" ")[2]
    for position, call in enumerate(calls, 1):
        disk.apply(call)
        if call.kind & Calls.CHANGE or call.op is Op.MARK:
            subsets = [Subset(f"{seed} {position} {number}") for number in range(SUBSETS)]
            for number, choice in enumerate([Durable(), Everything(), Names(), Data(), *subsets]):
                label = f"subset-{number - 4}" if number >= 4 else choice.label
                yield f"{part}/{position}/{label}", partial(run, choice, position)


def _after_a_crash(stage: Stage, state: State, keys: Keys, models: Sequence[Model]) -> Verdict:
    stage.clear()
    state.write(stage.data)
    return _examined(stage, keys, models)


# ---- the disk refuses --------------------------------------------------------------------------------------
def errors(stage: Stage, recording: Recording, _seed: int) -> Iterator[Run]:
    """Every kind of error at every call of every scene that it can befall."""
    yield from _strikes(stage, recording, ERRORS, _refused)


def _strikes(
    stage: Stage,
    recording: Recording,
    faults: Sequence[Fault],
    struck: Callable[[Stage, Scene, Fault, int], Verdict | None],
) -> Iterator[Run]:
    for number, scene in enumerate([*recording.scenes, *recording.crashes]):
        try:
            calls = stage.calls(scene)
        except RuntimeError as error:
            yield f"scene-{number}/{REHEARSAL}", partial(_unplayable, error)
            continue
        for fault in faults:
            for index in range(sum(bool(call.kind & fault.calls) for call in calls)):
                yield f"scene-{number}/{fault.name}/{index}", partial(struck, stage, scene, fault, index)


def _refused(stage: Stage, scene: Scene, fault: Fault, index: int) -> Verdict | None:
    stage.reset(scene.image)
    disk = Disk(stage.data)

    def run() -> tuple[Verdict, list[Model]]:
        verdict = Verdict()
        with stage.io.recording(stage.record):
            expected = _with_fault(stage, scene, fault, index, verdict)
        if not verdict.problems:
            examine(stage.data, scene.keys_after, expected, verdict)
        return verdict, expected

    result = forked(run)
    if isinstance(result, Died):
        return Verdict(problems=[f"{scene.name}: {result}"])
    verdict, expected = result
    calls = read_record(stage.record)
    if "no call" in verdict.notes and not verdict.problems:
        return None
    if not verdict.problems and any(call.op is Op.SYNC and call.error for call in calls):
        verdict.notes.append("power lost after a failed sync")
        end = next(i for i, call in enumerate(calls) if call.op is Op.MARK and call.path == _WATCHED)
        for call in calls[:end]:
            disk.apply(call)
        after = _after_a_crash(stage, disk.state(Durable()), scene.keys_after, expected)
        verdict.lost += after.lost
        verdict.phantom += after.phantom
        verdict.problems += [f"power lost after a failed sync: {problem}" for problem in after.problems]
    met = next((f", {call.op.name} of {call.path or 'the folder'}" for call in calls if call.error in _INJECTED), "")
    verdict.problems = [f"{scene.name}{met}: {problem}" for problem in verdict.problems]
    return verdict


def _with_fault(stage: Stage, scene: Scene, fault: Fault, index: int, verdict: Verdict) -> list[Model]:
    """The step with the fault, a look at everything while the fault lasts and after, and a write. What there may be
    from then on."""
    session = stage.begin(scene)
    possible: Sequence[Model] = scene.allowed()
    stage.io.arm(fault, index)
    try:
        scene.step.run(session)
        possible = scene.after()
        verdict.notes.append("done in spite of it")
    except HesearchError as error:
        verdict.notes.append(f"raised {type(error).__name__}")
    except Exception as error:
        verdict.problems.append(f"raised {type(error).__name__}, expected a HesearchError: {error}")
    if session.client is not None and fault.after:
        with verdict.trying("searching while the fault lasts"):
            verdict.compare("while the fault lasts", observe(session, verdict, "while the fault lasts"), possible)
    if stage.io.disarm() <= index:
        verdict.notes.append("no call")
    with verdict.trying("after the fault"):
        if session.client is None:
            session.open()
            stage.io.mark(BEGIN)
        found = observe(session, verdict, "after the fault")
        verdict.compare("after the fault", found, possible)
        possible = _written(stage, session, found, possible, verdict)
    stage.io.mark(_WATCHED)
    with verdict.trying("closing"):
        session.close()
    return list(possible)


def _written(
    stage: Stage, session: Session, found: Model, possible: Sequence[Model], verdict: Verdict
) -> Sequence[Model]:
    """One more write. It is refused with ReadOnlyError if a sync failed since the folder was opened; but SQLite tells
    nobody when it could not sync the folder of its files, so there it must be enough that nothing is lost. It may be
    refused after all other errors, but for a lack of room where room is needed, which is no failure of the disk."""
    calls = read_record(stage.record)
    begin = max(i for i, call in enumerate(calls) if call.op is Op.MARK and call.path == BEGIN)
    failed = [call for call in calls[begin:] if call.error in _INJECTED]
    try:
        after = probe(session, found, 0)
    except ReadOnlyError:
        verdict.notes.append("read-only afterwards")
        if all(call.error == errno.ENOSPC and call.kind & Calls.ROOM for call in failed):
            verdict.problems.append("writes are refused although the disk did not fail")
        return possible
    if any(call.op is Op.SYNC and call.path != _SQLITE_FOLDER for call in failed):
        verdict.problems.append("a write was taken after a sync had failed")
    return [after]


# ---- the process is killed ---------------------------------------------------------------------------------
def kill(stage: Stage, recording: Recording, _seed: int) -> Iterator[Run]:
    """SIGKILL before every call of every scene that changes something, and in the middle of every write."""
    yield from _strikes(stage, recording, KILLS, _killed)


def _killed(stage: Stage, scene: Scene, fault: Fault, index: int) -> Verdict | None:
    stage.reset(scene.image)

    def run() -> None:
        session = stage.begin(scene)
        stage.io.arm(fault, index)
        scene.step.run(session)

    result = forked(run)
    if result is None:
        return None
    if not isinstance(result, Died) or result.signal != signal.SIGKILL:
        return Verdict(problems=[f"{scene.name}: {result}"])
    verdict = _examined(stage, scene.keys_after, scene.allowed())
    verdict.problems = [f"{scene.name}: {problem}" for problem in verdict.problems]
    return verdict


CAMPAIGNS: dict[str, Campaign] = {"power": power, "errors": errors, "kill": kill}
