"""A program as source text: an entry for scenarios/found, and a scenario where one mount is enough."""

import re

from differential.fuzzer.program import OPENING, REMOUNT, SEGMENT, USERS, Slot

_RUN = re.compile(rb"(.{1,16}?)\1{9,}", re.DOTALL)


def source(value):
    """repr(), but long runs in bytes are written as products."""
    if isinstance(value, bytes) and len(value) > 30:
        parts, at = [], 0
        for run in _RUN.finditer(value):
            if run.start() > at:
                parts.append(repr(value[at : run.start()]))
            parts.append(f"{run[1]!r} * {len(run[0]) // len(run[1])}")
            at = run.end()
        if at < len(value):
            parts.append(repr(value[at:]))
        return " + ".join(parts)
    if isinstance(value, Slot):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{source(k)}: {source(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(source, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def shown(program, name):
    """What to paste, and where."""
    text = f"# for PROGRAMS in scenarios/found.py:\n{entry(program, name)}"
    if program.data or isinstance(program.lowers_on, tuple) or program.upper is None:
        return text
    if any(step[1] in SEGMENT + REMOUNT for step in program.steps):
        return text
    return f"{text}\n# or a scenario for scenarios/:\n{scenario(program, name)}"


def entry(program, name):
    defaults = type(program)()
    lines = [f"    {name!r}: Program("]
    for field, value in program._asdict().items():
        if value == getattr(defaults, field):
            continue
        if field in ("upper", "steps"):
            lines += [f"        {field}=[", *(f"            {source(x)}," for x in value), "        ],"]
        elif field in ("lowers", "data"):
            lines.append(f"        {field}=[")
            for layer in value:
                lines += [
                    "            [",
                    *(f"                {source(x)}," for x in layer),
                    "            ],",
                ]
            lines.append("        ],")
        else:
            lines.append(f"        {field}={value!r},")
    return "\n".join([*lines, "    ),", ""])


def scenario(program, name):
    options = ",".join(program.options + program.daemon)
    words = [f"options={options!r}"] if options else []
    words += [f"lowers={len(program.lowers)}"] if len(program.lowers) > 1 else []
    words += [f"on={program.on!r}"] if program.on != "ext4" else []
    words += [f"lowers_on={program.lowers_on!r}"] if program.lowers_on else []
    lines = [f"@scenario({', '.join(words)})", f"def {name}(b):"]
    layers = [("b.up", program.upper), *((f"b.lows[{n}]", calls) for n, calls in enumerate(program.lowers))]
    for layer, calls in layers:
        for method, *arguments in calls:
            lines.append(f"    {layer}.{method}({', '.join(map(source, arguments))})")
    lines.append("    t = yield")
    users = sorted({step[0] for step in program.steps} - {0})
    lines += [f"    t{n} = t.process{USERS[n]!r}" for n in users]
    for who, verb, *arguments in program.steps:
        process = f"t{who or ''}"
        target = ""
        if verb in OPENING:
            target = _name(who, arguments.pop(0)) + " = "
        text = ", ".join(_name(who, a) if isinstance(a, Slot) else source(a) for a in arguments)
        lines.append(f"    {target}{process}.{verb}({text})")
    return "\n".join([*lines, ""])


def _name(who, slot):
    return f"fd{slot.number}" + (f"_{who}" if who else "")
