from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consumers.errors import CheckpointError, ConfigError, StateError
from consumers.kafka_config import KafkaConfig
from deploy.deltas.config import DeltasConfig
from deploy.deltas.delta import Delta, DeltaName, decode, encode
from deploy.deltas.emitter import Emitter
from deploy.deltas.replica import Feed, Found, Replica
from deploy.deltas.store import DeltaStore, FolderStore
from deploy.deltas.topic_store import open_deltas
from index_refresh.changes import served_state
from index_refresh.learner import Learner
from tests.conftest import MakeTopic
from tests.worlds import CONTEXT, TinyWorld
from trainers.checkpoint import read_checkpoint

OFTEN = DeltasConfig(every_s=1e-9)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "deltas"))


@pytest.fixture
def world() -> TinyWorld:
    return TinyWorld(string_ids=True, context=CONTEXT).train(3)


class Life:
    """A trainer with its emitter, from a checkpoint on."""

    def __init__(self, world: TinyWorld, store: DeltaStore, root: Path) -> None:
        self.world, self.root = world, root
        self.is_followed = world.learner.parent is not None
        self.emitter = Emitter(world.learner, store, OFTEN)
        self.emitter.start()

    def checkpoint(self) -> Path:
        path = self.world.checkpoint(self.root, f"step-{self.world.learner.trainer.step}")
        self.emitter.cut(checkpoint=path.name)
        self.is_followed = True
        return path

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            told = self.emitter.written + self.is_followed
            self.world.train(1)
            self.emitter.cut()
            wait_for(lambda told=told: self.emitter.written >= told)  # type: ignore[misc]

    def end(self) -> None:
        self.emitter.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def follow(replica: Replica, store: DeltaStore) -> Found:
    """Apply what there is."""
    feed = Feed(store)
    while isinstance(delta := feed.next(replica.place), Delta):
        replica.apply(delta)
    return delta


def replica_of(path: Path) -> Replica:
    return Replica(read_checkpoint(path), "1")


def assert_same_state(replica: Replica, learner: Learner) -> None:
    ours, theirs = served_state(replica.learner), served_state(learner)
    assert ours.keys() == theirs.keys()
    different = [k for k in ours if not torch.equal(bits(ours[k]), bits(theirs[k]))]
    assert different == []
    assert replica.learner.trainer.items.names == learner.trainer.items.names


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.fixture
def life(world: TinyWorld, store: FolderStore, tmp_path: Path) -> Iterable[Life]:
    begun = Life(world, store, tmp_path / "checkpoints")
    yield begun
    begun.end()


def test_a_version_and_its_deltas_answer_like_the_trainer(life: Life, store: FolderStore) -> None:
    replica = replica_of(life.checkpoint())
    assert follow(replica, store) is Found.UP_TO_DATE
    life.train(3)
    life.end()
    assert follow(replica, store) is Found.UP_TO_DATE
    assert_same_state(replica, life.world.learner)
    assert replica.header is not None
    assert replica.header.step == life.world.learner.trainer.step
    (answer,) = replica.retrieve(["user-1"], k=5)
    assert answer.epoch == life.world.learner.refresher.epoch


def test_before_the_first_checkpoint_there_is_nothing_to_follow_from(life: Life, store: FolderStore) -> None:
    life.train(2)
    life.end()
    assert store.names(life.world.learner.lineage) == []


def test_a_later_version_follows_from_where_it_was_taken(life: Life, store: FolderStore) -> None:
    first = life.checkpoint()
    life.train(2)
    second = life.checkpoint()
    life.train(1)
    life.end()
    for base in (first, second):
        replica = replica_of(base)
        assert follow(replica, store) is Found.UP_TO_DATE
        assert_same_state(replica, life.world.learner)


def test_two_checkpoints_of_one_instant_are_both_followed(life: Life, store: FolderStore) -> None:
    life.checkpoint()
    life.train(1)
    learner = life.world.learner
    second = life.world.checkpoint(life.root, "same-instant")
    life.emitter.cut(checkpoint="same-instant")
    life.train(1)
    life.end()
    replica = replica_of(second)
    assert follow(replica, store) is Found.UP_TO_DATE
    assert_same_state(replica, learner)


def test_while_the_target_is_slow_deltas_are_fewer_and_none_is_left_out(
    world: TinyWorld, store: FolderStore, tmp_path: Path
) -> None:
    class Slow(FolderStore):
        is_away = True

        def append(self, lineage: str, name: DeltaName, content: bytes) -> None:
            if self.is_away:
                raise StateError("the target is away")
            super().append(lineage, name, content)

    slow = Slow(str(tmp_path / "deltas"))
    emitter = Emitter(world.learner, slow, DeltasConfig(max_waiting=1))
    emitter.start()
    base = world.checkpoint(tmp_path / "checkpoints")
    emitter.cut(checkpoint=base.name)
    for _ in range(6):
        world.train(1)
        emitter.cut()
    wait_for(lambda: emitter.last_error == "the target is away")
    slow.is_away = False
    wait_for(lambda: emitter.figures()["deltas_waiting"] == 0 and emitter.last_error is None)
    emitter.cut()
    emitter.close()
    assert 1 <= emitter.written < 6
    replica = replica_of(base)
    assert follow(replica, store) is Found.UP_TO_DATE
    assert_same_state(replica, world.learner)


def test_what_a_crash_undid_is_removed_and_a_server_that_holds_it_sees_that(
    world: TinyWorld, store: FolderStore, tmp_path: Path
) -> None:
    """The trainer dies two steps behind its checkpoint, and the next life learns other batches."""
    life = Life(world, store, tmp_path / "checkpoints")
    base = life.checkpoint()
    life.train(1)
    kept = life.checkpoint()
    life.train(2)
    life.end()
    ahead, waiting = replica_of(base), replica_of(base)
    follow(ahead, store)
    restored = Learner.restore(read_checkpoint(kept))
    resumed = TinyWorld(string_ids=True, context=CONTEXT, seed=9)
    resumed.learner = restored
    second = Life(resumed, store, tmp_path / "checkpoints")
    second.train(3)
    second.end()
    assert follow(ahead, store) is Found.BROKEN
    assert follow(waiting, store) is Found.UP_TO_DATE
    assert_same_state(waiting, restored)
    again = replica_of(base)
    follow(again, store)
    assert_same_state(again, restored)


def test_behind_a_missing_delta_a_server_stands_still(life: Life, store: FolderStore) -> None:
    replica = replica_of(life.checkpoint())
    life.train(3)
    life.end()
    lineage = life.world.learner.lineage
    names = store.names(lineage)
    store.remove(lineage, [names[1]])
    assert follow(replica, store) is Found.BROKEN
    assert replica.place.entry == names[0].next_entry


def test_a_delta_of_another_state_is_refused_and_changes_nothing(life: Life, store: FolderStore) -> None:
    base = life.checkpoint()
    replica, other = replica_of(base), replica_of(base)
    life.train(2)
    life.end()
    lineage = life.world.learner.lineage
    first, second = (decode(store.read(lineage, n) or b"", str(n)) for n in store.names(lineage)[:2])
    with pytest.raises(CheckpointError, match="does not follow"):
        replica.apply(second)
    assert replica.is_usable
    assert_same_state(replica, other.learner)
    replica.apply(first)


def test_a_delta_that_does_not_fit_makes_the_replica_unusable(life: Life, store: FolderStore) -> None:
    replica = replica_of(life.checkpoint())
    life.train(1)
    life.end()
    delta = Feed(store).next(replica.place)
    assert isinstance(delta, Delta)
    whole = {key: tensor for key, tensor in delta.changes.whole.items() if key != "trainer/scalars"}
    with pytest.raises(CheckpointError, match="do not fit"):
        replica.apply(replace(delta, changes=replace(delta.changes, whole=whole)))
    assert not replica.is_usable


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeltaName, bytes]:
    folder = tmp_path_factory.mktemp("one")
    store = FolderStore(str(folder / "deltas"))
    life = Life(TinyWorld(string_ids=True).train(2), store, folder / "checkpoints")
    life.checkpoint()
    life.train(1)
    life.end()
    lineage = life.world.learner.lineage
    name = store.names(lineage)[0]
    return name, store.read(lineage, name) or b""


def test_a_delta_survives_its_bytes(content: tuple[DeltaName, bytes]) -> None:
    name, body = content
    delta = decode(body, "one")
    assert (delta.name, delta.digest) == (name, name.digest)
    assert encode(delta.header, delta.changes)[1] == body
    assert DeltaName.parse(str(name)) == name


@given(data=st.data())
def test_no_damaged_delta_is_read(content: tuple[DeltaName, bytes], data: st.DataObject) -> None:
    body = bytearray(content[1])
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    with pytest.raises(CheckpointError, match="one: is"):
        decode(bytes(body), "one")


class DeltaStoreContract:
    """What servers and trainers rely on, whatever the store."""

    FIRST, SECOND = DeltaName(0, 5, "a" * 64), DeltaName(5, 1_000_000_000_000, "b" * 64)

    def test_a_delta_is_listed_in_order_and_comes_back(self, store: DeltaStore) -> None:
        assert store.names("line") == []
        store.append("line", self.SECOND, b"second")
        store.append("line", self.FIRST, b"first")
        assert store.names("line") == [self.FIRST, self.SECOND]
        assert store.read("line", self.FIRST) == b"first"

    def test_lineages_do_not_mix(self, store: DeltaStore) -> None:
        store.append("line", self.FIRST, b"first")
        store.append("line2", self.SECOND, b"second")
        assert store.names("line") == [self.FIRST]
        assert store.names("lin") == []

    def test_what_is_removed_is_gone_and_may_be_removed_again(self, store: DeltaStore) -> None:
        store.append("line", self.FIRST, b"first")
        store.append("line", self.SECOND, b"second")
        store.remove("line", [self.FIRST])
        store.remove("line", [self.FIRST])
        assert store.names("line") == [self.SECOND]
        assert store.read("line", self.FIRST) is None

    def test_appending_again_changes_nothing(self, store: DeltaStore) -> None:
        for _ in range(2):
            store.append("line", self.FIRST, b"first")
        assert store.names("line") == [self.FIRST]
        assert store.read("line", self.FIRST) == b"first"


class TestFolderStore(DeltaStoreContract):
    """A local folder."""


class TestTopicStore(DeltaStoreContract):
    """A topic of the embedded broker and of genuine Kafka."""

    @pytest.fixture
    def store(self, make_topic: MakeTopic, bootstrap_servers: str) -> Iterable[DeltaStore]:  # type: ignore[override]
        topic = make_topic(1, **{"cleanup.policy": "compact"})
        found = open_deltas(f"kafka:{topic}", KafkaConfig(bootstrap_servers=bootstrap_servers))
        yield found
        found.close()


def test_a_target_without_a_scheme_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_deltas(str(tmp_path), KafkaConfig()), FolderStore)


def test_old_and_many_deltas_leave_and_the_newest_stay(life: Life, store: FolderStore) -> None:
    life.checkpoint()
    life.train(4)
    life.end()
    lineage = life.world.learner.lineage
    names = store.names(lineage)
    size = len(store.read(lineage, names[-1]) or b"")
    assert store.prune(lineage, keep_s=3600, keep_bytes=2 * size + size // 2, now_s=time.time()) > 0
    left = store.names(lineage)
    assert left == names[-len(left) :]
    assert 1 <= len(left) <= 3
    assert store.prune(lineage, keep_s=3600, keep_bytes=1 << 40, now_s=time.time() + 7200) == len(left)


def test_a_folder_that_cannot_be_written_is_told_and_a_false_address_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="not written"):
        FolderStore(str(tmp_path / "file")).append("one", DeltaName(0, 1, "0" * 64), b"")
    with pytest.raises(ConfigError, match=r"deltas\.target"):
        FolderStore("nothing://here")


def test_names_that_are_no_deltas_are_passed_over(store: FolderStore, tmp_path: Path) -> None:
    folder = tmp_path / "deltas" / "line"
    folder.mkdir(parents=True)
    for name in (".unfinished-1", "README", "1-2-x.delta"):
        (folder / name).write_text("")
    assert store.names("line") == []
