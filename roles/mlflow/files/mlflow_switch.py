#!/usr/bin/python3 -I
"""Makes a generation of the MLflow server the live one without a gap, and goes back to the one before.

A generation is a release with its settings: a directory in /etc/mlflow/generations and a systemd unit of the same name.
mlflow.service is another name of the live one's unit: the one thing that says which generation is live, and what a boot
starts. /etc/mlflow/live and /run/mlflow/live.sock, which NGINX follows, are pointed by it.

Run as root, by the role and by hand. Starts the generation beside the live one, waits until it serves, points NGINX at
it, waits until no request is left at the old one, stops that, and removes what is neither live nor the one before.
Every step may be repeated: a run that was killed is finished by the next. Standard output names what was changed.
Exit status 0: the generation is live; 1: it is not, with the reason on standard error, and what served serves on.
`--clean`, for a timer, only removes what no switch came to: what a run prepared that ended early or was not agreed to.
"""

import argparse
import datetime
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

UNITS = pathlib.Path("/etc/systemd/system")
ALIAS = UNITS / "mlflow.service"
CONFIG = pathlib.Path("/etc/mlflow")
GENERATIONS = CONFIG / "generations"
LIVE = CONFIG / "live"
PREVIOUS = CONFIG / "previous"
# The release before the live one, and one that another server serves already: pages of either may be open in browsers
# or come from another server, and NGINX gives their files here too.
EARLIER = CONFIG / "earlier"
NEXT = CONFIG / "next"
# The generation that the live one took the place of by going back, until something else is live.
ROLLED_BACK = CONFIG / "rolled-back"
# Name of the backup set to which the databases are being brought back.
RESTORING = CONFIG / "restoring"
RUNTIME = pathlib.Path("/run/mlflow")
RELEASES = pathlib.Path("/opt/mlflow/releases")
LOCK = pathlib.Path("/run/mlflow-switch.lock")
# Held by what builds a release.
BUILD_LOCK = pathlib.Path("/run/mlflow-build.lock")
# Fields of /proc/net/unix: number, references, protocol, flags, type, state, inode, path. SS_CONNECTED is 3.
# https://man7.org/linux/man-pages/man5/proc_pid_net.5.html
SOCKETS = pathlib.Path("/proc/net/unix")
CONNECTED = "03"
POLL_SECONDS = 0.5


def systemctl(*arguments: str) -> str:
    """Standard output of systemctl; raises `subprocess.CalledProcessError` when it fails."""
    return subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def point(link: pathlib.Path, target: str) -> None:
    """Points a symbolic link somewhere else, by a rename, so that it is always there."""
    if link.is_symlink() and str(link.readlink()) == target:
        return
    staged = link.with_name(f".{link.name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(target)
    staged.replace(link)


def pointed(link: pathlib.Path) -> str:
    """Generation that a link names; empty where there is no such link."""
    return link.readlink().name.removesuffix(".service") if link.is_symlink() else ""


def running() -> dict[str, str]:
    """State of the generations that are neither stopped nor failed; one that systemd keeps restarting is activating."""
    lines = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "mlflow-*.service").splitlines()
    units = [line.split()[:3] for line in lines]
    states = {unit.removesuffix(".service"): state for unit, _load, state in units}
    stopped = ("inactive", "failed")
    return {name: state for name, state in states.items() if state not in stopped and (GENERATIONS / name).is_dir()}


def changed_since_start(generation: str) -> bool:
    """Whether a file of a running generation is younger than its process."""
    unit = UNITS / f"{generation}.service"
    begun = systemctl("show", "--timestamp=us+utc", "--property=ExecMainStartTimestamp", "--value", unit.name)
    start = datetime.datetime.strptime(f"{begun}+0000", "%a %Y-%m-%d %H:%M:%S.%f UTC%z").timestamp()
    return any(path.lstat().st_mtime > start for path in [unit, *(GENERATIONS / generation).iterdir()])


def connections(generation: str) -> int:
    """How many connections the generation has: each carries a request, or is one that NGINX keeps for seconds."""
    path = str(RUNTIME / generation / "server.sock")
    fields = [line.split() for line in SOCKETS.read_text().splitlines()]
    return len([field for field in fields if len(field) == 8 and field[5] == CONNECTED and field[7] == path])


def drain(generation: str, seconds: float) -> int:
    """Waits until nothing is connected, twice in a row, or out of time; returns how many connections are left."""
    deadline = time.monotonic() + seconds
    quiet = 0
    while quiet < 2:
        time.sleep(POLL_SECONDS)
        left = connections(generation)
        quiet = 0 if left else quiet + 1
        if time.monotonic() >= deadline:
            return left
    return 0


def release(generation: str) -> pathlib.Path:
    """Directory of the release that a generation runs."""
    return (GENERATIONS / generation / "release").resolve()


def earlier(before: str, generation: str) -> pathlib.Path:
    """Directory of the release before the one that a generation runs, which takes another's place."""
    if (GENERATIONS / generation).is_dir():
        is_other = release(before) != release(generation)
    else:
        # Not written, as this only says what would be done: its name has the version.
        is_other = before.rpartition("-")[0] != generation.rpartition("-")[0]
    return release(before) if is_other else EARLIER.resolve()


def commit(generation: str, *, is_back: bool = False) -> None:
    """Makes the generation the one that a boot starts, and the one that was it the one to go back to."""
    if pointed(ALIAS) not in ("", generation):
        if is_back:
            point(ROLLED_BACK, f"generations/{pointed(ALIAS)}")
        else:
            ROLLED_BACK.unlink(missing_ok=True)
        if (kept := earlier(pointed(ALIAS), generation)) != EARLIER.resolve():
            point(EARLIER, str(kept))
        point(PREVIOUS, f"generations/{pointed(ALIAS)}")
    point(ALIAS, f"{generation}.service")
    systemctl("daemon-reload")


def publish(generation: str) -> None:
    """Points NGINX at the generation if it is the live one: first the page's files, then the server."""
    if pointed(ALIAS) == generation:
        point(LIVE, f"generations/{generation}")
        point(RUNTIME / "live.sock", f"{generation}/server.sock")


def journal(generation: str, since: float, *options: str) -> str:
    """The last lines that the unit said since a time in seconds."""
    command = [
        "journalctl",
        f"--unit={generation}",
        f"--since=@{since:.0f}",
        "--lines=30",
        "--no-pager",
        "--output=cat",
    ]
    return subprocess.run([*command, *options], check=False, capture_output=True, text=True).stdout


def start(generation: str, verb: str, *, is_live: bool) -> None:
    """Starts the unit and waits until it serves; exits with what it said when it does not."""
    begun = time.time()
    systemctl("daemon-reload")
    try:
        systemctl(verb, generation)
    except subprocess.CalledProcessError:
        # Else systemd would try again for ever, beside the one that serves, or list it as failed. The live one it is to
        # try again: its database may be away for a while.
        if not is_live:
            systemctl("stop", generation)
            subprocess.run(["systemctl", "reset-failed", generation], check=False, capture_output=True)
        serving = ", ".join(name for name, state in running().items() if state == "active")
        state = f"{serving} serves as before" if serving else "nothing serves now"
        # The check's reason first: the server's own words may be long.
        said = journal(generation, begun, "--identifier=mlflow-ready") + journal(generation, begun)
        more = "More: docs/failures.md#the-new-server-did-not-start"
        sys.exit(f"{generation} did not start; {state}. Its last words:\n{said}{more}")


def forgettable(keep: set[str], *releases_kept: pathlib.Path) -> list[pathlib.Path]:
    """Generations that are not to be kept with their units, and releases that neither are nor run by a kept one."""
    releases = {path.name for path in [*map(release, keep), *releases_kept]}
    generations = [path for path in GENERATIONS.iterdir() if path.name not in keep]
    units = [path for path in UNITS.glob("mlflow-*.service") if path.stem in {path.name for path in generations}]
    return sorted([*units, *generations, *(path for path in RELEASES.iterdir() if path.name not in releases)])


def remove(path: pathlib.Path) -> None:
    """Removes a file or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def switch(generation: str, drain_seconds: float, *, is_back: bool, pretend: bool) -> None:
    """Takes every step that is still to be taken, and says each; only says it where `pretend`."""
    if RESTORING.exists():
        name, more = RESTORING.read_text().strip(), "More: docs/failures.md#a-restore-ended-half-way"
        sys.exit(
            f"{generation} was not started: the databases may hold a part of the backup set {name}, "
            f"whose restore has not ended. Run that again.\n{more}"
        )
    before, previous, release_before = pointed(ALIAS), pointed(PREVIOUS), EARLIER.resolve()
    states = running()
    if before not in ("", generation, *states) and states.get(generation) == "active" and not is_back:
        # It would serve on, until it starts the next time and does not know the schema.
        more = "More: docs/failures.md#the-new-server-did-not-start"
        sys.exit(
            f"{generation} serves, but a migration has made {before} the one that starts from now on, and that does "
            f"not run. Run upgrade.yml again for it, or rollback.yml, which restores the backup set of before.\n{more}"
        )
    if not before and not pretend:
        # systemd may know mlflow.service as a name without a unit; a running unit that takes it over loses its state.
        commit(generation)
    active = states.get(generation) == "active"
    if not active or changed_since_start(generation):
        print(f"{'restart' if active else 'start'} {generation}", flush=True)
        if not pretend:
            start(generation, "restart" if active else "start", is_live=before == generation)
    if before != generation:
        previous = before
        release_before = earlier(before, generation) if before else release_before
        print(f"switch from {before or 'nothing'} to {generation}", flush=True)
        if not pretend:
            commit(generation, is_back=is_back)
    if not pretend:
        publish(generation)
    for old in running():
        if old == generation:
            continue
        print(f"stop {old} once its requests are done", flush=True)
        if pretend:
            continue
        if left := drain(old, drain_seconds):
            print(f"cut {left} request(s) of {old}: not done after {drain_seconds:.0f} s", flush=True)
        systemctl("stop", old)
    # Where nothing was switched, what is beside may be another operator's upgrade that waits for an answer.
    if before != generation:
        forget({generation, previous} - {""}, release_before, pretend=pretend)


def forget(keep: set[str], release_before: pathlib.Path, *, pretend: bool) -> None:
    """Removes what is no longer needed, unless a release is being built, which `--clean` waits for some day."""
    with BUILD_LOCK.open("w") as building:
        try:
            fcntl.flock(building, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for path in forgettable(keep, release_before, NEXT.resolve()):
            print(f"remove {path}", flush=True)
            if not pretend:
                remove(path)


def clean(days: float, *, pretend: bool) -> None:
    """Removes what is neither live, the one before, running nor younger, and notes it in the unit's StateDirectory=."""
    keep = {pointed(ALIAS), pointed(PREVIOUS), *running()} - {""}
    youngest = time.time() - days * 86_400
    forgotten = forgettable(keep, EARLIER.resolve(), NEXT.resolve()) if keep else []
    found = [path for path in forgotten if path.lstat().st_ctime < youngest]
    for path in found:
        print(f"remove {path}", flush=True)
        if not pretend:
            remove(path)
    if found and not pretend:
        systemctl("daemon-reload")
    if not pretend:
        stamp = pathlib.Path(os.environ["STATE_DIRECTORY"], "last.json")
        ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        staged = stamp.with_suffix(".new")
        staged.write_text(json.dumps({"removed": len(found), "ended": ended}))
        staged.replace(stamp)


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", nargs="?", help="by default the one before the live one")
    parser.add_argument("--drain", type=float, default=3600, metavar="SECONDS", help="how long old requests may take")
    parser.add_argument("--back", action="store_true", help="remember that this goes back, as without a generation")
    parser.add_argument("--check", action="store_true", help="only say what would be done")
    parser.add_argument("--publish", action="store_true", help="only point NGINX at it, if it is the live one")
    parser.add_argument("--at-boot", action="store_true", help="only make it the one that a boot starts")
    parser.add_argument("--clean", type=float, metavar="DAYS", help="only remove what no switch came to for so long")
    options = parser.parse_args()
    if options.clean is not None:
        with LOCK.open("w") as switching, BUILD_LOCK.open("w") as building:
            fcntl.flock(building, fcntl.LOCK_EX)
            fcntl.flock(switching, fcntl.LOCK_EX)
            clean(options.clean, pretend=options.check)
        return
    generation = options.generation or pointed(PREVIOUS)
    if not options.check and not (GENERATIONS / generation / "release").is_dir():
        more = "More: docs/failures.md#there-is-nothing-to-go-back-to"
        sys.exit(f"There is no generation {generation!r} with its release: see {GENERATIONS}\n{more}")
    if options.publish:
        publish(generation)
        return
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.umask(0o022)
        if options.at_boot:
            commit(generation)
        else:
            switch(generation, options.drain, is_back=options.back or not options.generation, pretend=options.check)


if __name__ == "__main__":
    main()
