"""A differential fuzzer: random programs on the kernel's overlayfs and on voile, side by side.

program    what a program is: layers, options, steps, as plain data
draws      how random values are put together
names, layers, steps, draw    what is drawn: small pools, layers, steps, and whole programs (FEATURES)
picks      names and open files that are really there, chosen while the kernel plays
build      layers from plain data
player     plays steps in several processes of several users
side       one set of layers under changing mounts
arena      a program on both sides: what is unlike, and what the other makes of the layers
accepted   the differences that are known and meant
shrink     a small program that still shows a difference
show       a program as source text, for scenarios/found.py

`make fuzz MINUTES=n` runs it; `--seed` begins with a certain program, `--options` sets the mount options.
test_fuzz.py has a minute of it with fixed seeds, and plays scenarios/found.py.

Programs are not drawn and shrunk by hypothesis. It was tried first: it decides a step before the earlier ones
have happened, so a scout had to play each program once more for names that exist; it spent 35 to 100 ms on
drawing what is played in 200 ms, repeated parts of programs on purpose, and its shrinking took minutes where
one that knows what a step and a layer are takes seconds. Here each program follows from one number, its seed.
"""
