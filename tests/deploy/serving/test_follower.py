"""Following an alias of a real registry, and loading what is not whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import QUICK, Client, register, serving, serving_champion, wait_until

from consumers.errors import HsnnError, RegistryError
from deploy.registry import Registry
from deploy.serving.service import Service
from deploy.serving.versions import Versions
from tests.deploy.small_versions import folder_of
from trainers.checkpoint import MANIFEST

BODY = {"users": [{"user_id": "user-1"}], "k": 5}


@pytest.fixture
def two(registry: Registry, two_checkpoints: tuple[Path, Path]) -> tuple[int, int]:
    """Numbers of two versions, the first of them the champion."""
    first, second = (register(registry, path) for path in two_checkpoints)
    registry.promote(first)
    return first, second


def version_of(client: Client) -> str | None:
    reply = client.retrieve(BODY)
    return str(reply.json()["version"]) if reply.code == 200 else None


def problems_of(client: Client) -> str:
    return " ".join(client.get("/v1/model").json()["problems"])


def test_a_promotion_is_served_and_a_rollback_too(registry: Registry, two: tuple[int, int]) -> None:
    with serving_champion(registry) as client:
        wait_until(lambda: version_of(client) == str(two[0]))
        registry.promote(two[1])
        wait_until(lambda: version_of(client) == str(two[1]))
        registry.promote(two[0])
        wait_until(lambda: version_of(client) == str(two[0]))
        model = client.get("/v1/model").json()
    assert (model["alias"], model["wanted"], model["problems"]) == ("champion", str(two[0]), [])
    assert model["swaps"] == 3
    assert 0 < model["swap_s"] < 60


def test_a_pinned_version_stays_whatever_is_promoted(registry: Registry, two: tuple[int, int]) -> None:
    with serving(Service(QUICK, Versions(registry), pinned=str(two[1]))) as client:
        wait_until(lambda: version_of(client) == str(two[1]))
        model = client.get("/v1/model").json()
    assert (model["alias"], model["problems"]) == (str(two[1]), [])


def test_a_damaged_version_is_told_and_the_old_one_stays(registry: Registry, two: tuple[int, int]) -> None:
    (damaged,) = folder_of(registry, two[1]).glob("artifacts/*/items.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with serving_champion(registry) as client:
        wait_until(lambda: version_of(client) == str(two[0]))
        registry.promote(two[1])
        wait_until(lambda: "items.safetensors" in problems_of(client))
        assert version_of(client) == str(two[0])
        assert b"hsnn_serve_version_failing 1.0" in client.get("/metrics").body
        registry.promote(two[0])
        wait_until(lambda: problems_of(client) == "")
        assert client.get("/v1/model").json()["swaps"] == 1


def test_a_mended_version_is_served_without_a_move_of_the_alias(
    registry: Registry, two: tuple[int, int]
) -> None:
    (damaged,) = folder_of(registry, two[0]).glob("artifacts/*/items.safetensors")
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    with serving_champion(registry) as client:
        wait_until(lambda: b"items.safetensors" in client.get("/readyz").body)
        damaged.write_bytes(whole)
        wait_until(lambda: version_of(client) == str(two[0]))


def test_without_an_alias_the_server_says_what_to_do(registry: Registry) -> None:
    with serving_champion(registry) as client:
        wait_until(lambda: b"has no @champion" in client.get("/readyz").body)


@contextmanager
def registry_away(registry: Registry) -> Iterator[None]:
    """A directory in the place of its database."""
    database = Path(registry.tracking_uri.removeprefix("sqlite:///"))
    away = database.with_suffix(".away")
    registry.client._get_registry_client().store.engine.dispose()
    database.rename(away)
    database.mkdir()
    try:
        yield
    finally:
        database.rmdir()
        away.rename(database)


def test_while_the_registry_is_away_the_old_version_stays(registry: Registry, two: tuple[int, int]) -> None:
    with serving_champion(registry) as client:
        wait_until(lambda: version_of(client) == str(two[0]))
        with registry_away(registry):
            wait_until(lambda: problems_of(client))
            assert version_of(client) == str(two[0])
            assert b"hsnn_serve_registry_failing 1.0" in client.get("/metrics").body
        wait_until(lambda: problems_of(client) == "")


def test_a_server_starts_from_its_cache_while_the_registry_is_away(
    registry: Registry, two: tuple[int, int], tmp_path: Path
) -> None:
    config = QUICK.model_copy(update={"cache": tmp_path / "cache"})
    with serving_champion(registry, config) as client:
        wait_until(lambda: version_of(client) == str(two[0]))
        registry.promote(two[1])
        wait_until(lambda: version_of(client) == str(two[1]))
    assert [path.name for path in (tmp_path / "cache" / "hsnn").iterdir()] == [f"version-{two[1]}"]
    registry.promote(two[0])
    with registry_away(registry), serving_champion(Registry(registry.config), config) as client:
        wait_until(lambda: version_of(client) == str(two[1]))
    with serving_champion(registry, config) as client:
        wait_until(lambda: version_of(client) == str(two[0]))


def test_a_challenger_is_compared_off_the_answers_path(registry: Registry, two: tuple[int, int]) -> None:
    registry.challenge(two[1])
    shadow = QUICK.shadow.model_copy(update={"alias": "challenger", "share": 1.0})
    with serving_champion(registry, QUICK.model_copy(update={"shadow": shadow})) as client:
        wait_until(lambda: version_of(client) == str(two[0]))

        def compared() -> int:
            client.retrieve(BODY)
            return int(client.get("/v1/shadow").json()["compared"])

        wait_until(compared)
        report = client.get("/v1/shadow").json()
        assert (report["champion"], report["challenger"]) == (str(two[0]), str(two[1]))
        assert 0 <= report["overlap"] <= 1
        assert report["challenger_search_s"] > 0
        assert (report["failed"], report["problems"]) == (0, [])
        assert b"hsnn_shadow_overlap_ratio" in client.get("/metrics").body


# -- what does not load ------------------------------------------------------------------------------------


def damage(folder: Path, draw: random.Random) -> None:
    """Something that happens to files: a byte flips, the end is lost, a file is gone, or holds another's."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    kind = draw.choice(["flip", "cut", "remove", "swap", "grow"])
    if kind == "flip" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[draw.randrange(len(content) + 1) :]
    elif kind == "swap":
        content = bytearray(draw.choice(files).read_bytes())
    elif kind == "grow":
        content += b"\0"
    file.unlink()
    if kind != "remove":
        file.write_bytes(content)


def assert_loads_whole_or_not(registry: Registry, number: int, seeds: range) -> int:
    """How many of the damaged versions were refused; one that loads answers as the undamaged one does."""
    folder, versions = folder_of(registry, number), Versions(registry)
    wanted = versions.load(str(number)).retrieval.retrieve("user-1", k=20)
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    refused = 0
    for seed in seeds:
        damage(folder, random.Random(seed))
        try:
            assert versions.load(str(number)).retrieval.retrieve("user-1", k=20) == wanted, seed
        except HsnnError:
            refused += 1
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    return refused


def test_nothing_loads_that_is_not_whole(registry: Registry, two: tuple[int, int]) -> None:
    seeds = range(60)
    assert assert_loads_whole_or_not(registry, two[0], seeds) > len(seeds) / 2


@pytest.mark.slow
def test_nothing_loads_that_is_not_whole_in_a_thousand_accidents(
    registry: Registry, two: tuple[int, int]
) -> None:
    seeds = range(60, 1_060)
    assert assert_loads_whole_or_not(registry, two[0], seeds) > len(seeds) / 2


def checkpoint_in(registry: Registry, number: int) -> Path:
    (manifest,) = folder_of(registry, number).glob(f"artifacts/*/{MANIFEST}")
    return manifest.parent


def test_files_of_two_versions_do_not_mix(registry: Registry, two: tuple[int, int]) -> None:
    ours, theirs = (checkpoint_in(registry, number) for number in two)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    for file in sorted(ours.iterdir()):
        other = theirs / file.name
        if file.read_bytes() == other.read_bytes():
            continue
        content = file.read_bytes()
        file.write_bytes(other.read_bytes())
        with pytest.raises(HsnnError):
            Versions(registry).load(str(two[0]))
        file.write_bytes(content)
    assert Versions(registry).load(str(two[0])).version == str(two[0])


def test_whole_files_of_another_version_are_not_taken_for_these(
    registry: Registry, two: tuple[int, int]
) -> None:
    ours, theirs = (checkpoint_in(registry, number) for number in two)
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    with pytest.raises(RegistryError, match="they are another version's"):
        Versions(registry).load(str(two[0]))


@pytest.mark.parametrize(
    "described",
    [
        b"",
        b"\0",
        b"[]",
        b"flavors: 3",
        b"flavors: {python_function: {artifacts: {checkpoint: {path: ../../../../etc}}}}",
        b"flavors: {python_function: {artifacts: {checkpoint: {path: /etc}}}}",
        b"flavors: {python_function: {artifacts: {checkpoint: {path: 7}}}}",
        b"!!python/object/apply:os.system ['true']",
        b"a: &a [*a, *a]",
    ],
    ids=range(9),
)
def test_a_hostile_description_leads_nowhere(
    registry: Registry, two: tuple[int, int], described: bytes
) -> None:
    (folder_of(registry, two[0]) / "MLmodel").write_bytes(described)
    with pytest.raises(HsnnError):
        Versions(registry).load(str(two[0]))
