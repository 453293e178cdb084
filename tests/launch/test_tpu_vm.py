"""The scripts for Cloud TPU slices, with a gcloud that plays a slice of two workers; what runs there runs for real."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
ZONE, SLICE = "--zone=us-west4-a", "--type=v5litepod-16"


@pytest.fixture
def play(tmp_path):
    directory = tmp_path / "play"
    (directory / "bin").mkdir(parents=True)
    program = directory / "bin" / "gcloud"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{pathlib.Path(__file__).parent}/fake_gcloud.py" "$@"\n')
    program.chmod(0o755)
    (directory / "states").write_text("ACTIVE")
    (directory / "calls").touch()
    yield directory
    for worker in directory.glob("worker_*/run.pid"):
        subprocess.run(["kill", "-9", "--", f"-{worker.read_text().strip()}"], check=False, capture_output=True)


def launch(play, *arguments, **environment):
    environment = os.environ | {"PATH": f"{play}/bin:{os.environ['PATH']}", "FAKE_GCLOUD": str(play)} | environment
    command = ["bash", str(ROOT / "launch/tpu_vm.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def calls(play):
    """What gcloud was asked to do: `create`, `ssh run`, ..."""
    found = []
    for line in (play / "calls").read_text().splitlines():
        arguments = json.loads(line)
        words = next((item[10:] for item in arguments if item.startswith("--command=")), "").split()
        verb = words[words.index("bash") + 2] if "bash" in words else ""
        found.append(f"{arguments[3]} {verb}".strip())
    return found


def create_slice(play):
    done = launch(play, "create", "slice", ZONE, SLICE, "--poll=0")
    assert done.returncode == 0, done.stderr
    done = launch(play, "setup", "slice", ZONE)
    assert done.returncode == 0, done.stderr


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


# ------------------------------------------------------------------------------------ the verbs


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck(script):
    if shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("needs shellcheck")
    path = {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["shellcheck", script], env=os.environ | path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_create_waits_in_the_queue(play):
    (play / "states").write_text("WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    options = (ZONE, SLICE, "--project=mine", "--spot", "--valid_for=6h", "--poll=0")
    done = launch(play, "create", "slice", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"slice: {now}" for now in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")]
    created = json.loads((play / "calls").read_text().splitlines()[0])
    assert created == [
        *("compute", "tpus", "queued-resources", "create", "slice", ZONE, "--project=mine", "--node-id=slice"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
        "--valid-until-duration=6h",
    ]


def test_create_that_is_not_granted(play):
    (play / "states").write_text("WAITING_FOR_RESOURCES\nFAILED")
    done = launch(play, "create", "slice", SLICE, "--poll=0")
    assert done.returncode == 1
    assert "slice was not granted: FAILED" in done.stderr


def test_setup_installs_the_commit_on_every_worker(play):
    create_slice(play)
    for number in (0, 1):
        home = play / f"worker_{number}"
        assert (home / "lumiere/launch/on_worker.sh").read_text() == (ROOT / "launch/on_worker.sh").read_text()
        assert "pip -q install -e lumiere[tpu]" in (home / "installed").read_text()


def test_run_is_detached_and_its_end_is_known(play):
    create_slice(play)
    status = ("status", "slice")
    assert launch(play, *status).stdout.count(": idle") == 2
    # Spaces, quotes and dollar signs come through two shells as they are.
    script = 'echo "it\'s $1"; while [ ! -e ../go ]; do sleep 0.05; done; exit ${HOME##*_}'
    done = launch(play, "run", "slice", "--", "sh", "-c", script, "sh", "a $b")
    assert done.returncode == 0, done.stderr
    assert launch(play, *status).stdout.count(": running") == 2
    again = launch(play, "run", "slice", "--", "true")
    assert again.returncode == 1
    assert "running already, stop it first" in again.stderr
    for number in (0, 1):
        (play / f"worker_{number}/go").touch()
    wait_for(lambda: len(list(play.glob("worker_*/run.status"))) == 2)
    lines = launch(play, *status).stdout.splitlines()
    assert lines[0] == "slice: ACTIVE"
    assert [line.split(": ")[1] for line in lines[1:]] == ["done", "failed, exit status 1"]
    assert (play / "worker_1/run.log").read_text() == "it's a $b\n"


def test_delete(play):
    assert launch(play, "delete", "slice", ZONE).returncode == 0
    deleted = json.loads((play / "calls").read_text())
    assert deleted == ["compute", "tpus", "queued-resources", "delete", "slice", ZONE, "--force", "--quiet"]


# ------------------------------------------------------------------------------------ watch

WATCH = ("watch", "slice", ZONE, SLICE, "--bucket=mine", "--poll=1")


@pytest.fixture
def bucket(play):
    """Programs of a worker that mounting a bucket needs."""
    for program, content in {"gcsfuse": f'ln -sfn "{play}/bucket" "$HOME/mounted"', "mountpoint": "exit 1"}.items():
        (play / "bin" / program).write_text(f"#!/bin/sh\n{content}\n")
        (play / "bin" / program).chmod(0o755)
    (play / "bucket").mkdir()
    return play / "bucket"


def test_watch_makes_a_slice_and_sees_the_command_through(play, bucket):
    (play / "states").write_text("NONE\nPROVISIONING\nACTIVE")
    done = launch(play, *WATCH, "--", "sh", "-c", "echo done >> ../mounted/log")
    assert done.returncode == 0, done.stderr
    assert (bucket / "log").read_text() == "done\ndone\n"
    assert "slice: done. It is still there, and billed: launch/tpu_vm.sh delete slice --zone=us-west4-a" in done.stdout
    begin = ["describe", "create", "describe", "describe", "describe", "scp", "ssh install", "ssh state", "ssh run"]
    assert calls(play)[: len(begin)] == begin
    assert calls(play)[-1] == "ssh state"


def test_watch_starts_all_workers_again_when_one_fails(play, bucket):
    """The other one is asked to end, as a training is that must save first."""
    script = """
        if [ -e ../mounted/failed ]; then exit 0; fi
        case $HOME in
          *_1) sleep 1; touch ../mounted/failed; exit 3 ;;
          *) trap 'echo saved >> ../mounted/log; exit 0' TERM; while true; do sleep 0.1; done ;;
        esac"""
    (play / "states").write_text("NONE\nACTIVE")
    done = launch(play, *WATCH, "--", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "failed, exit status 3" in done.stderr
    assert "slice: restart 1 of 5" in done.stderr
    assert (bucket / "log").read_text() == "saved\n"
    assert [call for call in calls(play) if call in ("ssh run", "ssh stop")] == ["ssh run", "ssh stop", "ssh run"]


def test_watch_goes_on_after_a_worker_was_asked_to_end(play, bucket):
    """As before a machine is taken back: a training then saves and ends with 0, on all workers, and is not done."""
    script = """
        if [ -e ../mounted/asked ]; then exit 0; fi
        trap 'exit 0' TERM
        case $HOME in *_1) touch ../mounted/asked; kill -TERM -- -$(cat ../run.pid) ;; esac
        while [ ! -e ../mounted/asked ]; do sleep 0.1; done; sleep 1"""
    (play / "states").write_text("NONE\nACTIVE")
    done = launch(play, *WATCH, "--max_restarts=0", "--", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": stopped, asked to end") == 1
    assert "slice: was asked to end before it was done, starting it again" in done.stderr
    assert [call for call in calls(play) if call in ("ssh run", "ssh stop")] == ["ssh run", "ssh stop", "ssh run"]


def test_watch_gives_up_after_so_many_failures(play, bucket):
    (play / "states").write_text("NONE\nACTIVE")
    done = launch(play, *WATCH, "--max_restarts=1", "--", "false")
    assert done.returncode == 1
    assert "error: slice failed 2 times: launch/tpu_vm.sh logs slice" in done.stderr
    assert calls(play).count("ssh run") == 2


def test_watch_asks_for_another_slice_when_it_was_taken_back(play, bucket):
    """Everything on the workers' own disks is lost then."""
    (play / "states").write_text("NONE\nACTIVE\nACTIVE\nSUSPENDED\nNONE\nACTIVE")
    script = "if [ -e ../mounted/before ]; then exit 0; fi; touch ../mounted/before; sleep 60"
    done = launch(play, *WATCH, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "slice was taken back or not granted (SUSPENDED): asking for another" in done.stderr
    assert [call for call in calls(play) if call in ("create", "delete", "ssh install")] == [
        *("create", "ssh install", "delete", "create", "ssh install"),
    ]


def test_watch_does_not_ask_for_ever(play, bucket):
    done = launch(play, *WATCH, "--", "true", FAKE_GCLOUD_REFUSES="ERROR: PERMISSION_DENIED")
    assert done.returncode == 1
    assert "PERMISSION_DENIED" in done.stderr


# ------------------------------------------------------------------------------------ without doing anything


def test_dry_run_prints_every_command_and_runs_none(play):
    command = ("--", "python", "-m", "lumiere_jax.train", "--config=configs/stunet.py:if_l", "--workdir=bucket/a b")
    done = launch(play, *WATCH, "--spot", "--dry_run", *command)
    assert done.returncode == 0, done.stderr
    # Where this checkout has changes, that is said too.
    lines = [line for line in done.stderr.splitlines() if "not committed" not in line]
    assert all(line.startswith("gcloud compute tpus ") for line in lines)
    assert [line.split()[4] for line in lines] == ["create", "describe", "scp", "ssh", "ssh", "ssh"]
    assert "--spot" in lines[0]
    assert "install" in lines[3]
    assert calls(play) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("create", SLICE, "--spot"), ["queued-resources create", "queued-resources describe"]),
        (("setup", "--bucket=mine"), ["tpu-vm scp", "tpu-vm ssh"]),
        (("run", "--", "true"), ["tpu-vm ssh"]),
        (("status",), ["queued-resources describe", "tpu-vm ssh"]),
        (("logs", "--worker=1"), ["tpu-vm ssh"]),
        (("delete",), ["queued-resources delete"]),
    ],
    ids=lambda value: value[0],
)
def test_dry_run_of_each_verb(play, bucket, arguments, expected):
    """What it prints is what the verb runs: the two differ in nothing but the name of a temporary file."""
    verb, *flags = arguments
    if verb != "create":
        create_slice(play)
        (play / "calls").write_text("")
    done = launch(play, verb, "slice", ZONE, "--dry_run", *flags)
    assert done.returncode == 0, done.stderr
    assert calls(play) == []
    lines = [shlex.split(line) for line in done.stderr.splitlines() if line.startswith("gcloud ")]
    assert [" ".join(line[3:5]) for line in lines] == expected
    if verb == "logs":  # it would follow the log for ever
        return
    launch(play, verb, "slice", ZONE, "--poll=0", *flags)
    ran = [["gcloud", *json.loads(line)] for line in (play / "calls").read_text().splitlines()]
    assert [without_temporary(line) for line in ran] == [without_temporary(line) for line in lines]


def without_temporary(arguments):
    return [re.sub(r".*/tmp\.\w+\.tar\.gz$", "ARCHIVE", argument) for argument in arguments]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "VERB NAME"),
        (("fly", "slice"), "unknown verb 'fly': use create, setup"),
        (("create",), "create needs the slice's name"),
        (("create", "Slice_1"), "name 'Slice_1': lower-case letters"),
        (("create", "slice"), "create needs --type"),
        (("create", "slice", "--type=v9-8"), "--type=v9-8: no image is known for it, give --runtime too"),
        (("create", "slice", "--size=8"), "unknown flag '--size=8'"),
        (("create", "slice", SLICE, "--poll=soon"), "--poll=soon is not a number"),
        (("create", "slice", SLICE, "--", "true"), "create takes no command"),
        (("run", "slice"), "run needs a command"),
        (("watch", "slice", SLICE, "--", "true"), "watch needs --bucket"),
    ],
)
def test_bad_input(play, arguments, message):
    done = launch(play, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert calls(play) == []
