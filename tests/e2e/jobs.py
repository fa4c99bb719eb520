"""Real jobs, as shell scripts that run in the current directory, and what they leave behind, for comparison.

Each runs once in a plain directory and once in `voile run`; nothing of its result may depend on the time.
"""

import base64
import hashlib
import io
import tarfile
import zipfile

MAKE_FILES = {
    "Makefile": """
CFLAGS = -O1 -Wall
OBJS = main.o sort.o text.o
prog: $(OBJS)
\t$(CC) -o $@ $(OBJS)
%.o: %.c common.h
\t$(CC) $(CFLAGS) -c -o $@ $<
test: prog
\tprintf 'b\\nc\\na\\n' | ./prog > out.txt
clean:
\trm -f $(OBJS) prog
""",
    "common.h": "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
    "void sort_lines(char **, int);\nchar *copy(const char *);\n#define LIMIT 1000\n",
    "main.c": '#include "common.h"\nint main(void) { char b[200], *l[LIMIT]; int n = 0;\n'
    "  while (n < LIMIT && fgets(b, sizeof b, stdin)) l[n++] = copy(b);\n"
    "  sort_lines(l, n); for (int i = 0; i < n; i++) fputs(l[i], stdout); return 0; }\n",
    "sort.c": '#include "common.h"\nstatic int c(const void *a, const void *b) '
    "{ return strcmp(*(char *const *)a, *(char *const *)b); }\n"
    "void sort_lines(char **l, int n) { qsort(l, n, sizeof *l, c); }\n",
    "text.c": '#include "common.h"\nchar *copy(const char *s) '
    "{ char *r = malloc(strlen(s) + 1); return r ? strcpy(r, s) : r; }\n",
}

# A second build must find nothing to do; a touched header must rebuild everything.
MAKE = """
make -s -j2 test
make -q prog
cat out.txt
touch -d '2030-01-01' common.h
! make -q prog
make -s prog
make -s clean
make -s -j2 test
cp prog installed && strip installed && ./installed < Makefile > sorted.txt
"""

GIT = """
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_AUTHOR_DATE='2001-01-01T00:00:00Z' GIT_COMMITTER_DATE='2001-01-01T00:00:00Z'
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME=$PWD
git init -q -b main .
for round in 1 2 3 4 5; do
    for i in $(seq 60); do echo "round $round file $i" > "file $i"; done
    git add -A && git commit -q -m "round $round"
done
git mv 'file 1' 'moved 1' && git rm -q 'file 2' && git commit -q -m moves
git checkout -q -b side HEAD~2 && echo side > side && git add side && git commit -q -m side
git checkout -q main && git merge -q -m merge side
git gc -q --prune=now
git fsck --full --strict 2>&1
git status --porcelain
git rev-parse HEAD && git log --oneline --stat | cat
git count-objects -v | grep -E '^(count|in-pack|packs|garbage)'
git clone -q . clone && git -C clone rev-parse HEAD
"""

# Two writers and a reader on a write-ahead log: shared memory (-shm), locks between processes, fsync.
SQLITE = """
cat > writer.py <<'PY'
import sqlite3, sys
db = sqlite3.connect("test.db", timeout=60, isolation_level=None)
db.execute("pragma synchronous=full")
for i in range(100):
    db.execute("begin immediate")
    db.execute("insert into t values (?, ?)", (sys.argv[1] + str(i), "x" * 200))
    db.execute("commit")
PY
python3 - <<'PY'
import sqlite3
db = sqlite3.connect("test.db")
print(db.execute("pragma journal_mode=wal").fetchone())
db.execute("create table t (k text primary key, v text)")
PY
python3 writer.py a & python3 writer.py b & wait %1 && wait %2
python3 - <<'PY'
import sqlite3
db = sqlite3.connect("test.db", isolation_level=None)
print(db.execute("select count(*), count(distinct k) from t").fetchone())
print(db.execute("pragma integrity_check").fetchone())
print(db.execute("pragma wal_checkpoint(truncate)").fetchone()[0])
db.execute("vacuum")
print(db.execute("pragma integrity_check").fetchone())
with open("dump.sql", "w") as f:
    f.writelines(sorted(line + "\\n" for line in db.iterdump()))
PY
rm test.db*
"""

PIP = """
"$PYTHON" -m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --no-cache-dir \
    --root-user-action=ignore --target lib thing-1.0-py3-none-any.whl 2>&1
"$PYTHON" -m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --no-cache-dir \
    --root-user-action=ignore --upgrade --target lib thing-1.1-py3-none-any.whl 2>&1
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=lib "$PYTHON" -c 'import thing.deep; print(thing.deep.value)'
"""

DPKG = """
export HOME=$PWD
d() { dpkg --root="$PWD/root" --log="$PWD/log" --force-not-root --force-bad-path "$@" > /dev/null; }
d -i thing_1_all.deb
echo changed >> root/etc/thing.conf
dpkg-query --admindir="$PWD/root/var/lib/dpkg" -W -f '${Package} ${Version} ${Status}\\n'
d --force-confold -i thing_2_all.deb
cat root/usr/share/thing/version root/etc/thing.conf
dpkg --root="$PWD/root" --verify
d -r thing
dpkg-query --admindir="$PWD/root/var/lib/dpkg" -W -f '${Package} ${Version} ${Status}\\n'
d -i thing_2_all.deb
rm log
"""


def write_make(directory):
    for name, text in MAKE_FILES.items():
        (directory / name).write_text(text.lstrip("\n"))


def write_wheels(directory):
    """Two versions of a package of 300 modules, made by hand: no build tool, no network."""
    for version in ("1.0", "1.1"):
        info = f"thing-{version}.dist-info"
        files = {"thing/__init__.py": "", "thing/deep/__init__.py": f"value = {version!r}\n"}
        files |= {f"thing/deep/m{i}.py": f"x = {i}\n" * 20 for i in range(300)}
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n"
        files[f"{info}/WHEEL"] = (
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        record = ""
        for name, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
        with zipfile.ZipFile(directory / f"thing-{version}-py3-none-any.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(zipfile.ZipInfo(name), text)


def write_packages(directory):
    """A root tree with an empty dpkg database, and two versions of a package, made by hand as well."""
    database = directory / "root/var/lib/dpkg"
    for name in ("info", "updates", "triggers", "parts"):
        (database / name).mkdir(parents=True)
    (database / "status").write_text("")
    (database / "available").write_text("")
    (directory / "root/var/log").mkdir()
    (directory / "root/usr/share").mkdir(parents=True)
    for version in ("1", "2"):
        control = f"Package: thing\nVersion: {version}\nArchitecture: all\n"
        control += "Maintainer: a <a@example.org>\nDescription: t\n"
        files = {f"./usr/share/thing/data/{i:03}": f"{version} {i}\n" * 50 for i in range(150)}
        files |= {"./usr/share/thing/version": version + "\n", "./etc/thing.conf": f"conf {version}\n"}
        sums = "".join(
            f"{hashlib.md5(t.encode()).hexdigest()}  {n[2:]}\n" for n, t in files.items() if "etc" not in n
        )
        members = {
            "debian-binary": b"2.0\n",
            "control.tar": _tar(
                {"./control": control, "./conffiles": "/etc/thing.conf\n", "./md5sums": sums}
            ),
            "data.tar": _tar(files, links={"./usr/share/thing/link": "data/001"}),
        }
        archive = b"!<arch>\n"
        for name, data in members.items():
            archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
            archive += data + b"\n" * (len(data) % 2)
        (directory / f"thing_{version}_all.deb").write_bytes(archive)


def _tar(files, links=None):
    """A tar archive with the directories that dpkg wants to see before their files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        seen = set()
        for name in [*files, *(links or {})]:
            parts = name.split("/")[:-1]
            for end in range(1, len(parts) + 1):
                directory = "/".join(parts[:end])
                if directory not in seen:
                    seen.add(directory)
                    member = tarfile.TarInfo(directory)
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
            member = tarfile.TarInfo(name)
            if links and name in links:
                member.type, member.linkname = tarfile.SYMTYPE, links[name]
                tar.addfile(member)
            else:
                data = files[name].encode()
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


# name: (writes the input, script, commands it needs)
JOBS = {
    "make": (write_make, MAKE, ["make", "gcc", "strip"]),
    "git": (lambda directory: None, GIT, ["git"]),
    "sqlite": (lambda directory: None, SQLITE, ["python3"]),
    "pip": (write_wheels, PIP, ["python3"]),
    "dpkg": (write_packages, DPKG, ["dpkg", "dpkg-query"]),
}
