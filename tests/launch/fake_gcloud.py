"""Stands in for gcloud: records its calls, and plays a slice of two workers with a directory as home of each.

What is sent to a worker by ssh runs for real, in that directory. `FAKE_GCLOUD` names the directory of the play:
`calls` (one a line, JSON), `states` (the queue's next answers, one a line; the last one stays), `worker_0`, `worker_1`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

PLAY = pathlib.Path(os.environ["FAKE_GCLOUD"])
WORKERS = [PLAY / "worker_0", PLAY / "worker_1"]


def flag(arguments, name):
    return next((item.split("=", 1)[1] for item in arguments if item.startswith(f"--{name}=")), None)


def next_state():
    lines = (PLAY / "states").read_text().splitlines()
    (PLAY / "states").write_text("\n".join(lines[1:] or lines))
    return lines[0]


def main(arguments):
    with (PLAY / "calls").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if refusal := os.environ.get("FAKE_GCLOUD_REFUSES"):
        print(refusal, file=sys.stderr)
        return 1
    match arguments[2:4]:
        case ["queued-resources", "describe"]:
            state = next_state()
            if state == "NONE":
                print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
                return 1
            print(state)
        case ["queued-resources", "create"]:
            for worker in WORKERS:
                (worker / "venv/bin").mkdir(parents=True)
                for program in ("python", "pip"):
                    file = worker / "venv/bin" / program
                    file.write_text(f'#!/bin/sh\necho "{program} $*" >> "{worker}/installed"\n')
                    file.chmod(0o755)
        case ["queued-resources", "delete"]:
            for worker in WORKERS:
                shutil.rmtree(worker, ignore_errors=True)
        case ["tpu-vm", "scp"]:
            for worker in WORKERS:
                shutil.copy(arguments[4], worker / arguments[5].split(":")[1])
        case ["tpu-vm", "ssh"]:
            chosen = flag(arguments, "worker")
            workers = WORKERS if chosen == "all" else [WORKERS[int(chosen)]]
            codes = [
                subprocess.run(
                    ["bash", "-c", flag(arguments, "command")],
                    env=os.environ | {"HOME": str(worker), "STOP_SECONDS": "5"},
                    cwd=worker,
                    check=False,
                ).returncode
                for worker in workers
            ]
            return max(codes)
        case _:
            print(f"the fake knows no {arguments}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
