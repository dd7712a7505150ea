"""The pool of models: who is loaded, who must go, and that nobody loses a model while using it.

    WHISPER_RACE_SECONDS=60 PYTHONPATH=. pytest tests/test_pool.py -k race -s

lets the race at the end of this file run for a minute instead of a few seconds.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import ROOT
from tests.web.conftest import put_model
from tests.web.running_server import wait_until
from whisperlib import WhisperLibraryAdapter, assets
from whisperlib.encoder import files
from whisperlib.engine import Engine
from whisperlib.errors import (
    ClosedError,
    MemoryBudgetError,
    ModelFileError,
    ModelNotFoundError,
    OverloadedError,
    TranscriptionCancelled,
)
from whisperlib.options import CancelToken
from whisperlib.pool import RECENT_SECONDS, ModelPool
from whisperlib.settings import Settings

RACE_SECONDS = float(os.environ.get("WHISPER_RACE_SECONDS", "3"))  # read before the fixtures hide it
WAIT_SECONDS = 60.0  # on a busy machine
MEGABYTE = 1_000_000
SIZES = {
    "tiny": 40,
    "base": 70,
    "small": 100,
    "medium": 160,
    "large": 110,
}  # MB in memory; a file is half of that


class DoubleEngine:
    """Stands in for an engine, as real ones have not the sizes that a test wants. Fails if it is used when closed."""

    def __init__(self, world: World, name: str, process_id: int) -> None:
        self.world = world
        self.closed = False
        self.config = SimpleNamespace(model=name, process_id=process_id, resident_bytes=SIZES[name] * MEGABYTE)

    def transcribe(self) -> str:
        assert not self.closed
        return str(self.config.model)

    def close(self) -> None:
        assert not self.closed, "it was closed twice"
        self.closed = True
        self.world.resident_bytes -= self.world.megabytes(self.config.model) * MEGABYTE
        self.world.closed.append(self.config.model)


@dataclass
class World:
    """What the pool sees of the machine: a double of its clock and its memory, and a place where loads can be held."""

    now: float = 1000.0
    resident_bytes: int = 500 * MEGABYTE
    loaded: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    began: dict[str, threading.Event] = field(default_factory=dict)
    larger: dict[str, int] = field(default_factory=dict)
    process_id: int = field(default_factory=os.getpid)
    loads_at_once: int = 0

    def megabytes(self, name: str) -> int:
        return self.larger.get(name, SIZES[name])

    def load(self, name: str) -> Engine:
        self.loads_at_once += 1
        assert self.loads_at_once == 1
        try:
            self.loaded.append(name)
            self.began.setdefault(name, threading.Event()).set()
            if name in self.gates:
                assert self.gates[name].wait(WAIT_SECONDS)
            if name in self.failing:
                raise ModelFileError(f"{name}\nis damaged")
            self.resident_bytes += self.megabytes(name) * MEGABYTE
            return cast(Engine, DoubleEngine(self, name, self.process_id))
        finally:
            self.loads_at_once -= 1

    def size_of(self, name: str) -> int:
        if name not in SIZES:
            raise ModelNotFoundError(f"no model is called {name!r}")
        return SIZES[name] * MEGABYTE // 2

    def hold(self, name: str) -> threading.Event:
        """Have loads of `name` wait for the event that this returns."""
        self.gates[name] = threading.Event()
        self.began[name] = threading.Event()
        return self.gates[name]


class WatchedPool(ModelPool):
    """The pool itself; a test can see how many threads wait in it."""

    waiting = 0

    def _wait(self, deadline: float | None, cancel: CancelToken | None) -> bool:
        self.waiting += 1
        try:
            return super()._wait(deadline, cancel)
        finally:
            self.waiting -= 1


MakePool = Callable[..., WatchedPool]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def make_pool(world: World) -> Iterator[MakePool]:
    pools: list[WatchedPool] = []

    def make(megabytes: int | None = None, **settings: Any) -> WatchedPool:
        pools.append(
            WatchedPool(
                world.load,
                world.size_of,
                budget_bytes=megabytes and megabytes * MEGABYTE,
                clock=lambda: world.now,
                resident_bytes=lambda: world.resident_bytes,
                **settings,
            )
        )
        return pools[-1]

    yield make
    for gate in world.gates.values():
        gate.set()
    for pool in pools:
        if not pool._closed:
            pool.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def use(pool: ModelPool, name: str, **keywords: Any) -> str:
    with pool.lease(name, **keywords) as engine:
        return cast(DoubleEngine, engine).transcribe()


def states(pool: ModelPool, *names: str) -> list[str]:
    return [pool.status(name).state for name in names]


def test_a_model_is_loaded_when_it_is_asked_for_and_kept(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    assert pool.status("tiny").state == "unloaded"
    assert [use(pool, "tiny"), use(pool, "base"), use(pool, "tiny")] == ["tiny", "base", "tiny"]
    assert world.loaded == ["tiny", "base"]
    assert list(pool.loaded()) == ["tiny", "base"]
    assert pool.status("tiny").state == "ready"


def test_who_asks_while_it_loads_waits_for_that_load(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool, gate = make_pool(), world.hold("small")
    asking = [threads.submit(use, pool, "small", max_wait_seconds=0) for _ in range(6)]
    assert world.began["small"].wait(WAIT_SECONDS)
    assert pool.status("small").state == "loading"
    gate.set()
    assert [one.result(WAIT_SECONDS) for one in asking] == ["small"] * 6
    assert world.loaded == ["small"]
    assert pool.status("small").leases == 0


def test_one_model_is_loaded_at_a_time(make_pool: MakePool, world: World, threads: ThreadPoolExecutor) -> None:
    pool, gate = make_pool(), world.hold("tiny")
    first = threads.submit(use, pool, "tiny")
    assert world.began["tiny"].wait(WAIT_SECONDS)
    with pytest.raises(OverloadedError, match="'base'.*another model is being loaded"):
        use(pool, "base", max_wait_seconds=0)
    second = threads.submit(use, pool, "base")
    gate.set()
    assert (first.result(WAIT_SECONDS), second.result(WAIT_SECONDS)) == ("tiny", "base")  # World.load counts


def test_a_failed_load_is_raised_to_all_who_wait_and_tried_anew(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool, gate = make_pool(), world.hold("tiny")
    world.failing.add("tiny")
    asking: list[Future[str]] = [threads.submit(use, pool, "tiny") for _ in range(3)]
    wait_until(lambda: pool.waiting == 2, "all but the one who loads wait")
    gate.set()
    for one in asking:
        with pytest.raises(ModelFileError, match="is damaged"):
            one.result(WAIT_SECONDS)
    assert world.loaded == ["tiny"]
    status = pool.status("tiny")
    assert (status.state, status.reason) == ("failed", "tiny is damaged")
    world.failing.clear()
    assert use(pool, "tiny") == "tiny"
    assert pool.status("tiny").reason is None


def test_a_model_that_is_not_there_is_an_error_and_nothing_is_loaded(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    with pytest.raises(ModelNotFoundError, match="'huge'"):
        use(pool, "huge")
    assert (pool.status("huge").state, pool.status("huge").size_bytes) == ("failed", None)
    assert world.loaded == []


def test_sizes_are_estimated_by_the_file_then_measured(make_pool: MakePool) -> None:
    pool = make_pool()
    assert (pool.status("small").size_bytes, pool.status("small").measured) == (50 * MEGABYTE, False)
    use(pool, "small")
    assert (pool.status("small").size_bytes, pool.status("small").measured) == (100 * MEGABYTE, True)
    assert pool.loaded() == {"small": 100 * MEGABYTE}


def test_what_grows_beside_a_request_is_no_measure(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    with pool.lease("tiny"):
        use(pool, "small")
    assert (pool.status("small").size_bytes, pool.status("small").measured) == (50 * MEGABYTE, False)
    pool.reload("small")
    assert (pool.status("small").size_bytes, pool.status("small").measured) == (100 * MEGABYTE, True)
    pool.unload("small")
    with pool.lease("tiny"):
        use(pool, "small")
    assert (pool.status("small").size_bytes, pool.status("small").measured) == (100 * MEGABYTE, True)


def test_a_model_takes_no_less_than_its_file(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    world.larger["small"] = 0  # as where it gets the memory that another has left
    use(pool, "small")
    assert pool.status("small").size_bytes == 50 * MEGABYTE


def test_an_engine_in_a_process_of_its_own_takes_what_that_process_takes(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    world.process_id = 1  # not this one
    with pool.lease("tiny"):
        use(pool, "small")
    assert (pool.status("small").size_bytes, pool.status("small").measured) == (100 * MEGABYTE, True)


def test_the_one_that_was_not_used_for_longest_makes_room(make_pool: MakePool, world: World) -> None:
    pool = make_pool(220)
    for name in ("tiny", "base", "tiny"):
        use(pool, name)
        world.now += 1
    use(pool, "medium")
    assert world.closed == ["base"]
    assert states(pool, "tiny", "base", "medium") == ["ready", "unloaded", "ready"]


def test_no_more_go_than_must(make_pool: MakePool, world: World) -> None:
    pool = make_pool(220)
    for name in ("tiny", "base", "small"):
        use(pool, name)
        world.now += 1
    use(pool, "large")
    assert world.closed == ["tiny", "base"]
    assert list(pool.loaded()) == ["small", "large"]


def test_pinned_models_stay(make_pool: MakePool, world: World) -> None:
    pool = make_pool(150, pinned=("tiny",))
    for name in ("tiny", "base", "small"):
        use(pool, name)
        world.now += 1
    assert world.closed == ["base"]
    assert pool.status("tiny").pinned


def test_a_model_that_can_never_fit_is_a_clear_error(make_pool: MakePool, world: World) -> None:
    pool = make_pool(110, pinned=("tiny",))
    use(pool, "tiny")
    with pytest.raises(MemoryBudgetError, match=r"'medium' takes 80 MB \(the size of its files\).* 110 MB.*tiny 40 MB"):
        use(pool, "medium")
    assert world.loaded == ["tiny"]
    with pytest.raises(MemoryBudgetError, match=r"'small' takes 100 MB \(measured\).*WHISPER_PINNED"):
        use(pool, "small")
    assert world.loaded == ["tiny", "small"]  # its file would have fitted
    assert world.closed == ["small"]
    with pytest.raises(MemoryBudgetError, match="measured"):
        use(pool, "small")
    assert world.loaded == ["tiny", "small"]
    assert use(pool, "base") == "base"


def test_where_only_leases_are_in_the_way_one_waits_for_them(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(110)
    with pool.lease("base") as engine:
        with pytest.raises(OverloadedError, match="requests use the memory") as caught:
            use(pool, "small", max_wait_seconds=0)
        assert caught.value.retry_after_seconds > 0
        with pytest.raises(OverloadedError):
            use(pool, "small", max_wait_seconds=0.01)
        waiting = threads.submit(use, pool, "small", max_wait_seconds=WAIT_SECONDS)
        wait_until(lambda: pool.waiting, "it waits")
        assert not engine.closed
    assert waiting.result(WAIT_SECONDS) == "small"
    assert world.closed[-1] == "base"


def test_the_background_has_nothing_unloaded_that_was_used_recently(make_pool: MakePool, world: World) -> None:
    pool = make_pool(150)
    use(pool, "tiny")
    use(pool, "base")
    assert not pool.has_room("small")
    with pytest.raises(OverloadedError, match="'small'.*requests use the memory"):
        use(pool, "small", background=True, max_wait_seconds=WAIT_SECONDS)
    assert pool.has_room("base")
    assert use(pool, "base", background=True) == "base"
    world.now += RECENT_SECONDS
    assert pool.has_room("small")
    assert use(pool, "small", background=True) == "small"
    assert world.closed == ["tiny", "base"]


def test_what_only_the_background_used_makes_room_for_it(make_pool: MakePool, world: World) -> None:
    pool = make_pool(110)
    use(pool, "small", background=True)
    assert pool.has_room("base")
    assert use(pool, "base", background=True) == "base"
    assert world.closed == ["small"]


def test_a_request_has_a_model_back_from_the_background(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool, cancel, revoked = make_pool(170), CancelToken(), threading.Event()
    cancel.add_listener(revoked.set)
    with ExitStack() as leases:
        leases.enter_context(pool.lease("medium", background=True, cancel=cancel))
        asking = threads.submit(use, pool, "base")
        assert revoked.wait(WAIT_SECONDS)
        wait_until(lambda: pool.waiting == 1, "it waits")
        assert not pool.has_room("medium")
        with pytest.raises(OverloadedError, match="requests wait for memory"):
            use(pool, "medium", background=True)
    assert asking.result(WAIT_SECONDS) == "base"
    assert world.closed == ["medium"]
    assert not pool.has_room("medium")


def test_nothing_is_revoked_in_vain(make_pool: MakePool, world: World, threads: ThreadPoolExecutor) -> None:
    pool, cancel = make_pool(80), CancelToken()
    world.larger["small"] = 50
    with ExitStack() as leases:
        leases.enter_context(pool.lease("tiny", background=True, cancel=cancel))
        with pool.lease("base"):
            asking = threads.submit(use, pool, "small")
            wait_until(lambda: pool.waiting == 1, "it waits")
            assert not cancel.cancelled
        wait_until(lambda: cancel.cancelled, "now the background is all that is in the way")
    assert asking.result(WAIT_SECONDS) == "small"


def test_the_background_does_not_wait_for_a_load(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool, gate = make_pool(), world.hold("tiny")
    first = threads.submit(use, pool, "tiny")
    assert world.began["tiny"].wait(WAIT_SECONDS)
    for name in ("tiny", "base"):
        assert not pool.has_room(name)
        with pytest.raises(OverloadedError, match="another model is being loaded"):
            use(pool, name, background=True)
    gate.set()
    assert first.result(WAIT_SECONDS) == "tiny"
    assert pool.has_room("tiny")


def test_a_model_that_turns_out_too_large_for_now_waits_for_room(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(120)
    world.process_id = 1
    with pool.lease("base"):
        waiting = threads.submit(use, pool, "small")  # 50 MB by its file, 100 in memory
        wait_until(lambda: world.closed == ["small"], "it was closed again")
        assert pool.loaded() == {"base": 70 * MEGABYTE}
    assert waiting.result(WAIT_SECONDS) == "small"
    assert world.closed == ["small", "base"]


def test_a_wait_ends_with_its_token(make_pool: MakePool, threads: ThreadPoolExecutor) -> None:
    pool, token = make_pool(110), CancelToken()
    with pool.lease("base"):
        waiting = threads.submit(use, pool, "small", cancel=token)
        wait_until(lambda: pool.waiting, "it waits")
        token.cancel()
        with pytest.raises(TranscriptionCancelled):
            waiting.result(WAIT_SECONDS)
        with pytest.raises(TranscriptionCancelled):
            use(pool, "base", cancel=token)
    assert pool.status("base").leases == 0


def test_an_idle_model_is_unloaded_when_its_time_is_over(make_pool: MakePool, world: World) -> None:
    pool = make_pool(keep_alive_seconds=60, pinned=("tiny",))
    for name in ("tiny", "base"):
        use(pool, name)
    world.now += 59
    pool.expire()
    status = pool.status("base")
    assert (status.idle_seconds, status.expires_in_seconds) == (59, 1)
    assert pool.status("tiny").expires_in_seconds is None
    world.now += 1
    pool.expire()
    assert world.closed == ["base"]
    assert (pool.status("base").state, pool.status("base").idle_seconds) == ("unloaded", None)


def test_a_model_in_use_is_not_idle(make_pool: MakePool, world: World) -> None:
    pool = make_pool(keep_alive_seconds=60)
    with pool.lease("tiny"):
        world.now += 3600
        assert pool.status("tiny").idle_seconds is None
        pool.expire()
    world.now += 59
    pool.expire()
    assert world.closed == []


@pytest.mark.parametrize(("keep_alive_seconds", "left"), [(None, 60.0), (5.0, 5.0), (0.0, None)])
def test_a_request_says_how_long_its_model_stays(
    make_pool: MakePool, keep_alive_seconds: float | None, left: float | None
) -> None:
    pool = make_pool(keep_alive_seconds=60)
    use(pool, "tiny", keep_alive_seconds=keep_alive_seconds)
    assert pool.status("tiny").expires_in_seconds == left
    use(pool, "tiny")
    assert pool.status("tiny").expires_in_seconds == 60


def test_a_watch_unloads_by_itself_and_ends_with_the_pool(world: World, threads: ThreadPoolExecutor) -> None:
    pool = ModelPool(world.load, world.size_of, keep_alive_seconds=0.01)
    watching = threads.submit(pool.watch)
    use(pool, "tiny")
    wait_until(lambda: world.closed == ["tiny"], "it is unloaded")
    pool.close()
    watching.result(WAIT_SECONDS)


def test_an_unload_waits_for_leases_and_who_comes_meanwhile_has_it_loaded_anew(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool()
    with pool.lease("tiny") as engine:
        unloading = threads.submit(pool.unload, "tiny")
        wait_until(lambda: pool.status("tiny").state == "unloading", "it is unloaded")
        assert pool.status("tiny").leases == 1
        coming = threads.submit(use, pool, "tiny")
        with pytest.raises(OverloadedError, match="still being unloaded"):
            use(pool, "tiny", max_wait_seconds=0)
        assert cast(DoubleEngine, engine).transcribe() == "tiny"
    assert unloading.result(WAIT_SECONDS)
    assert coming.result(WAIT_SECONDS) == "tiny"
    assert engine.closed
    assert world.loaded == ["tiny", "tiny"]


def test_an_unload_that_cannot_wait_is_done_by_the_last_lease(make_pool: MakePool, world: World) -> None:
    pool = make_pool(pinned=("tiny",))
    with pool.lease("tiny"):
        assert not pool.unload("tiny", max_wait_seconds=0)
        assert world.closed == []
    assert world.closed == ["tiny"]
    assert pool.unload("tiny")  # there is nothing
    assert pool.unload("base")
    assert states(pool, "tiny", "base") == ["unloaded", "unloaded"]


def test_an_unload_waits_for_a_load_of_the_same(make_pool: MakePool, world: World, threads: ThreadPoolExecutor) -> None:
    pool, gate = make_pool(), world.hold("tiny")
    loading = threads.submit(pool.load, "tiny")
    assert world.began["tiny"].wait(WAIT_SECONDS)
    assert not pool.unload("tiny", max_wait_seconds=0)
    unloading = threads.submit(pool.unload, "tiny")
    gate.set()
    loading.result(WAIT_SECONDS)
    assert unloading.result(WAIT_SECONDS)
    assert world.closed == ["tiny"]


def test_a_reload_swaps_while_requests_take_the_old_one(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(200)
    with pool.lease("tiny") as old:
        gate = world.hold("tiny")
        reloading = threads.submit(pool.reload, "tiny")
        assert world.began["tiny"].wait(WAIT_SECONDS)
        with pool.lease("tiny", max_wait_seconds=0) as meanwhile:
            assert meanwhile is old
        gate.set()
        reloading.result(WAIT_SECONDS)
        assert pool.loaded() == {"tiny": 80 * MEGABYTE}  # both, until the lease ends
        with pool.lease("tiny") as fresh:
            assert fresh is not old
        assert not old.closed
    assert world.closed == ["tiny"]
    assert pool.loaded() == {"tiny": 40 * MEGABYTE}


def test_a_reload_without_memory_for_both_unloads_first(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(150)
    with pool.lease("small"), pytest.raises(OverloadedError, match="requests still use it"):
        pool.reload("small", max_wait_seconds=0)
    assert world.closed == ["small"]
    pool.load("small")
    pool.reload("small")
    assert world.closed == ["small", "small"]
    assert world.loaded == ["small"] * 3
    assert pool.status("small").state == "ready"


def test_a_reload_that_fails_leaves_the_old_one(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    pool.load("tiny")
    world.failing.add("tiny")
    with pytest.raises(ModelFileError):
        pool.reload("tiny")
    assert use(pool, "tiny") == "tiny"
    assert (world.closed, pool.status("tiny").reason) == ([], "tiny is damaged")


def test_a_reload_of_what_is_not_loaded_is_a_load(make_pool: MakePool, world: World) -> None:
    pool = make_pool()
    pool.reload("tiny")
    assert world.loaded == ["tiny"]


def test_a_model_that_its_owner_closed_is_loaded_anew(make_pool: MakePool, world: World) -> None:
    pool = make_pool(45)
    with pool.lease("tiny") as engine:
        pass
    engine.close()
    assert states(pool, "tiny") == ["unloaded"]
    assert use(pool, "tiny") == "tiny"
    assert world.loaded == ["tiny", "tiny"]


def test_a_close_closes_all_also_what_is_lent_and_what_still_loads(
    make_pool: MakePool, world: World, threads: ThreadPoolExecutor
) -> None:
    pool, gate = make_pool(), world.hold("base")
    with ExitStack() as leases:
        engine = leases.enter_context(pool.lease("tiny"))
        loading = threads.submit(use, pool, "base")
        assert world.began["base"].wait(WAIT_SECONDS)
        waiting = threads.submit(use, pool, "small")
        pool.close()
        assert engine.closed
    with pytest.raises(ClosedError):
        waiting.result(WAIT_SECONDS)
    gate.set()
    with pytest.raises(ClosedError):
        loading.result(WAIT_SECONDS)
    assert world.closed == ["tiny", "base"]
    with pytest.raises(ClosedError):
        use(pool, "tiny")
    assert pool.engine("tiny") is engine


def test_a_model_that_cannot_be_closed_is_logged_and_forgotten(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    pool.load("tiny")
    monkeypatch.setattr(DoubleEngine, "close", lambda _self: 1 / 0)
    assert pool.unload("tiny")
    assert "tiny could not be closed" in caplog.text
    assert pool.loaded() == {}
    pool.load("tiny")
    monkeypatch.undo()


def test_the_settings_say_how_a_pool_is_made(tmp_path: Path) -> None:
    settings = Settings(model_size="micro", model_root=tmp_path, memory_budget="2GB", keep_alive_seconds=7)
    pool = ModelPool.from_settings(settings)
    assert (pool.budget_bytes, pool.keep_alive_seconds, pool.pinned) == (2_000_000_000, 7, frozenset({"micro"}))
    assert pool.status("micro").size_bytes == assets.MICRO_MODEL.stat().st_size
    with pytest.raises(ModelNotFoundError, match="models download tiny"):
        pool.load("tiny")
    assert ModelPool.from_settings(Settings(pinned="tiny,base")).pinned == {"tiny", "base"}


def test_the_encoder_beside_a_model_counts_where_it_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "require_openvino", lambda: None)
    model = put_model(tmp_path, "tiny")
    alone = model.stat().st_size
    for kind, n_bytes in (("float", 2000), ("int8", 1000)):
        directory = files.directory_of(model, kind)
        directory.mkdir()
        about = {"kind": kind, "format": files.FORMAT, "model": files.fingerprint(model), "relative_errors": {}}
        (directory / files.ABOUT).write_text(json.dumps(about), encoding="utf-8")
        (directory / "encoder.xml").touch()
        (directory / "encoder.bin").write_bytes(bytes(n_bytes))

    def estimate(**settings: Any) -> int | None:
        return ModelPool.from_settings(Settings(model_root=tmp_path, **settings)).status("tiny").size_bytes

    assert estimate() == alone + 2000
    assert estimate(encoder_precision="int8") == alone + 1000
    assert estimate(encoder="ggml") == estimate(device="cuda") == alone
    (files.directory_of(model, "float") / "encoder.bin").unlink()
    assert estimate() == alone


def test_the_example_of_the_documentation_runs(
    run_python: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/lifecycle.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(ROOT)
    child = run_python(code, environment={"WHISPER_MODEL_SIZE": "micro"})
    assert child.stdout == "The train to Paris leaves at five thirty-six from platform five.\n", child.stderr
    for target in re.findall(r"\]\(([^)#]+)", page):
        assert (ROOT / "docs" / target).exists(), target


@pytest.fixture
def two_models(tmp_path: Path) -> Settings:
    """Settings with the micro model under two names."""
    put_model(tmp_path, "tiny")
    return Settings(model_size="micro", model_root=tmp_path, threads=1, concurrency=2, encoder="ggml")


@pytest.mark.timeout(int(RACE_SECONDS) + 300)
def test_a_race_of_loads_unloads_reloads_and_requests_loses_no_request(two_models: Settings) -> None:
    """Two models, and memory for one and a half of them; who asks for one waits until it can be had."""
    clip = assets.SAMPLES / "seen_020.flac"
    with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
        expected = whisper.transcribe(clip, profile="fast").text
    assert expected
    file_bytes = assets.MICRO_MODEL.stat().st_size
    pool = ModelPool(
        lambda name: cast(Engine, WhisperLibraryAdapter(name, settings=two_models)),
        lambda _name: file_bytes,
        budget_bytes=file_bytes * 3 // 2,
        keep_alive_seconds=0.05,
        resident_bytes=lambda: 0,  # sizes are those of the files: others' requests are no measure
    )
    names, ends = ("micro", "tiny"), time.monotonic() + RACE_SECONDS

    def requests(number: int) -> Counter[str]:
        dice, done = random.Random(number), Counter[str]()
        while time.monotonic() < ends:
            name = dice.choice(names)
            with pool.lease(name, keep_alive_seconds=dice.choice((None, 0.0, 0.02))) as engine:
                result = engine.transcribe(clip, profile="fast")
            assert (result.text, result.model) == (expected, name)
            done["transcribe"] += 1
        return done

    def lives(number: int) -> Counter[str]:
        dice, done = random.Random(number), Counter[str]()
        while time.monotonic() < ends or len(done) < 3:
            what = dice.choice((pool.load, pool.unload, pool.reload))
            what(dice.choice(names))
            done[what.__name__] += 1
        return done

    with ThreadPoolExecutor(6) as threads:
        threads.submit(pool.watch)
        running = [threads.submit(work, number) for number, work in enumerate([requests] * 3 + [lives] * 2)]
        try:
            done = sum((one.result() for one in running), Counter[str]())
        finally:
            pool.close()
    sys.stderr.write(f"\n{RACE_SECONDS:g} s: {dict(done)}\n")
    assert set(done) == {"transcribe", "load", "unload", "reload"}
