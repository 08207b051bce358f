"""A checkpoint that is not what was written is refused, by the name of the file and what is wrong with it."""

from foundry_core.checkpoints.checkpoint import check_resumable, checkpoints, optimizer_file
from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.manifest import read_manifest
from tests.faults.harness import in_child
from tests.faults.scenario import flip

DAMAGE = {
    "is damaged": lambda path: flip(path, len(path.read_bytes()) // 2),
    "has 1 bytes, not": lambda path: path.write_bytes(path.read_bytes()[:1]),
    "is missing": lambda path: path.unlink(),
    "is not in the manifest": lambda path: path.with_name(f"{path.name}.bak").write_bytes(path.read_bytes()),
}


def not_refused(judge):
    """Damage that goes unnoticed, or is not called what it is."""

    def look(tell):
        judge.scenario.mutate()
        newest = checkpoints(judge.scenario.run_folder)[-1]
        folders = (newest, optimizer_file(newest).parent)
        before = {path: path.read_bytes() for folder in folders for path in folder.iterdir() if path.name != MANIFEST}
        for path, content in before.items():
            for says, harm in DAMAGE.items():
                harm(path)
                try:
                    read_manifest(path.parent)
                    tell(("wrong", f"{path.name}: nobody says that it {says}"))
                except CheckpointError as error:
                    if not str(error).startswith(str(path)) or says not in str(error):
                        tell(("wrong", str(error)))
                path.write_bytes(content)
                path.with_name(f"{path.name}.bak").unlink(missing_ok=True)
        check_resumable(newest, read_manifest(newest))
        tell(("looked at", len(before)))

    judge.scenario.reset()
    judge.scenario.train()
    ended = in_child(look)
    return (
        ended.of("wrong") + ended.errors + [f"looked at {ended.of('looked at')} files"] * (ended.of("looked at") != [8])
    )


def test_a_damaged_file_is_refused_with_its_name_and_the_damage(fresh):
    assert not_refused(fresh) == []
