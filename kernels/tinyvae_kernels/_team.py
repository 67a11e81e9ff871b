"""A team: threads that wait for a moment in machine code, so that a job need not wake them.

Waking a thread costs some 80 us on an EPYC under KVM, as much as a small kernel takes.  So a helper
that has done its part of a job looks for the next one, in machine code and without Python's lock,
and sleeps in the operating system after `SPIN_US` without any: an idle process uses no core, and
nothing is pinned.  A job is cut into more parts than there are threads, and each thread takes the
next part that nobody has: a helper that wakes late, or whose core is busy with another program,
holds nobody up.

    job      int32 job(argument, k, count): part k of count; not 0 is a failure
    helper   its `state`: 0 IDLE, 1 CALLED, 2 ASLEEP, 3 WORKING, 4 AWAITED (the caller sleeps until
             the part is done).  The caller sets 1 and 4, and takes 1 back if it has done all parts
             before the helper came; the helper sets the others.

One job runs at a time; who comes meanwhile, from another thread, works alone.  Threads and locks
are the C functions behind Python's, which need neither the interpreter nor its lock.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from typing import Any

import numpy as np

# How long a helper looks for the next job, and a caller for the end of a part, before it sleeps.
SPIN_US = 100

_PAUSE = {"x86_64": "pause", "AMD64": "pause", "aarch64": "yield", "arm64": "yield"}

# 128 bytes each: neighbouring cores fetch lines in pairs, and shall not fight for one.
_CODE = """
@helpers = internal global [{helpers} x [16 x i64]] zeroinitializer, align 128
                                                ; each one's state, lock, number, and thread's id
@next = internal global [{threads} x [16 x i64]] zeroinitializer, align 128   ; each one's next part
@busy = internal global [16 x i64] zeroinitializer, align 128
@failed = internal global [16 x i64] zeroinitializer, align 128
%job = type {{ ptr, ptr, i64, i64 }}   ; function, argument, count of parts, threads
@job = internal global %job zeroinitializer, align 128
@awaited = internal global i64 0   ; the caller's lock
@cores = internal global i64 0     ; a bit for each
@budget = internal global i64 0    ; turns of spinning

define internal void @pause() alwaysinline {{
  call void asm sideeffect "{pause}", ""()
  ret void
}}

define internal void @release(ptr %place) {{
  %lock = load i64, ptr %place
  call void inttoptr (i64 {PyThread_release_lock} to ptr)(i64 %lock)
  ret void
}}

{elsewhere}
define internal void @acquire(ptr %place) {{
  %lock = load i64, ptr %place
  %done = call i32 inttoptr (i64 {PyThread_acquire_lock} to ptr)(i64 %lock, i32 1)
  ret void
}}

define internal i64 @first(i64 %thread, i64 %count, i64 %threads) {{   ; its first part
  %all = mul i64 %thread, %count
  %part = sdiv i64 %all, %threads
  ret i64 %part
}}

define internal void @work(i64 %me) {{   ; own parts, then the others' that nobody has begun
entry:
  %function = load ptr, ptr @job
  %argument = load ptr, ptr getelementptr (%job, ptr @job, i64 0, i32 1)
  %count = load i64, ptr getelementptr (%job, ptr @job, i64 0, i32 2)
  %threads = load i64, ptr getelementptr (%job, ptr @job, i64 0, i32 3)
  br label %turn
turn:
  %i = phi i64 [ 0, %entry ], [ %j, %done ]
  %sum = add i64 %me, %i
  %whose = srem i64 %sum, %threads
  %next = getelementptr [16 x i64], ptr @next, i64 %whose
  %after = add i64 %whose, 1
  %end = call i64 @first(i64 %after, i64 %count, i64 %threads)
  br label %take
take:
  %k = atomicrmw add ptr %next, i64 1 monotonic
  %some = icmp slt i64 %k, %end
  br i1 %some, label %part, label %done
part:
  %status = call i32 %function(ptr %argument, i64 %k, i64 %count)
  %good = icmp eq i32 %status, 0
  br i1 %good, label %take, label %bad
bad:
  store atomic i64 1, ptr @failed monotonic, align 8
  br label %take
done:
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %threads
  br i1 %more, label %turn, label %all
all:
  ret void
}}

define void @help(ptr %state) {{
entry:
  %lock = getelementptr i64, ptr %state, i64 1
  %place = getelementptr i64, ptr %state, i64 2
  %me = load i64, ptr %place
  %id = call i64 @thread()
  %to = getelementptr i64, ptr %state, i64 3
  store i64 %id, ptr %to
  br label %begin
begin:
  %budget = load i64, ptr @budget
  br label %look
look:
  %left = phi i64 [ %budget, %begin ], [ %fewer, %wait ], [ %budget, %lost ]
  %now = load atomic i64, ptr %state monotonic, align 8
  %called = icmp eq i64 %now, 1
  br i1 %called, label %accept, label %spin
accept:
  %began = cmpxchg ptr %state, i64 1, i64 3 acq_rel monotonic
  %mine = extractvalue {{ i64, i1 }} %began, 1
  br i1 %mine, label %do, label %lost
lost:
  br label %look
do:
  call void @work(i64 %me)
  %before = atomicrmw xchg ptr %state, i64 0 acq_rel
  %waited = icmp eq i64 %before, 4
  br i1 %waited, label %tell, label %begin
tell:
  call void @release(ptr @awaited)
  br label %begin
spin:
  %fewer = sub i64 %left, 1
  %over = icmp sle i64 %fewer, 0
  br i1 %over, label %tired, label %wait
wait:
  call void @pause()
  br label %look
tired:
  %slept = cmpxchg ptr %state, i64 0, i64 2 acq_rel monotonic
  %asleep = extractvalue {{ i64, i1 }} %slept, 1
  br i1 %asleep, label %sleep, label %begin
sleep:
  call void @acquire(ptr %lock)
  br label %begin
}}

define internal void @finish(ptr %state) {{   ; the caller: until this helper does nothing any more
entry:
  %budget = load i64, ptr @budget
  %taken = cmpxchg ptr %state, i64 1, i64 0 acq_rel monotonic
  %back = extractvalue {{ i64, i1 }} %taken, 1
  br i1 %back, label %end, label %look
look:
  %left = phi i64 [ %budget, %entry ], [ %fewer, %wait ]
  %now = load atomic i64, ptr %state acquire, align 8
  %working = icmp eq i64 %now, 3
  br i1 %working, label %spin, label %end
spin:
  %fewer = sub i64 %left, 1
  %over = icmp sle i64 %fewer, 0
  br i1 %over, label %tired, label %wait
wait:
  call void @pause()
  br label %look
tired:
  %set = cmpxchg ptr %state, i64 3, i64 4 acq_rel acquire
  %still = extractvalue {{ i64, i1 }} %set, 1
  br i1 %still, label %sleep, label %end
sleep:
  call void @acquire(ptr @awaited)
  br label %end
end:
  ret void
}}

define i64 @run(ptr %function, ptr %argument, i64 %count, i64 %helpers) {{
entry:
  %some = icmp sgt i64 %helpers, 0
  br i1 %some, label %try, label %alone
try:
  %free = cmpxchg ptr @busy, i64 0, i64 1 acq_rel monotonic
  %mine = extractvalue {{ i64, i1 }} %free, 1
  br i1 %mine, label %post, label %alone
post:
  store ptr %function, ptr @job
  store ptr %argument, ptr getelementptr (%job, ptr @job, i64 0, i32 1)
  store i64 %count, ptr getelementptr (%job, ptr @job, i64 0, i32 2)
  %threads = add i64 %helpers, 1
  store i64 %threads, ptr getelementptr (%job, ptr @job, i64 0, i32 3)
  store atomic i64 0, ptr @failed monotonic, align 8
  br label %share
share:
  %t = phi i64 [ 0, %post ], [ %t1, %share ]
  %part = call i64 @first(i64 %t, i64 %count, i64 %threads)
  %next = getelementptr [16 x i64], ptr @next, i64 %t
  store atomic i64 %part, ptr %next monotonic, align 8
  %t1 = add i64 %t, 1
  %rest = icmp slt i64 %t1, %threads
  br i1 %rest, label %share, label %call
call:
  %i = phi i64 [ 0, %share ], [ %j, %called ]
  %state = getelementptr [16 x i64], ptr @helpers, i64 %i
  %before = atomicrmw xchg ptr %state, i64 1 acq_rel
  %asleep = icmp eq i64 %before, 2
  br i1 %asleep, label %wake, label %called
wake:
  %lock = getelementptr i64, ptr %state, i64 1
  call void @elsewhere(ptr %state)
  call void @release(ptr %lock)
  br label %called
called:
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %helpers
  br i1 %more, label %call, label %together
together:
  call void @work(i64 0)
  br label %wait
wait:
  %m = phi i64 [ 0, %together ], [ %n, %wait ]
  %other = getelementptr [16 x i64], ptr @helpers, i64 %m
  call void @finish(ptr %other)
  %n = add i64 %m, 1
  %others = icmp slt i64 %n, %helpers
  br i1 %others, label %wait, label %end
end:
  %failed = load atomic i64, ptr @failed monotonic, align 8
  store atomic i64 0, ptr @busy release, align 8
  ret i64 %failed
alone:
  %k = phi i64 [ 0, %entry ], [ 0, %try ], [ %k1, %alone ]
  %bad = phi i64 [ 0, %entry ], [ 0, %try ], [ %bad1, %alone ]
  %status = call i32 %function(ptr %argument, i64 %k, i64 %count)
  %wide = sext i32 %status to i64
  %bad1 = or i64 %bad, %wide
  %k1 = add i64 %k, 1
  %again = icmp slt i64 %k1, %count
  br i1 %again, label %alone, label %over
over:
  ret i64 %bad1
}}

define void @turns(i64 %count) {{   ; what a helper does while it waits, to be timed
entry:
  br label %look
look:
  %left = phi i64 [ %count, %entry ], [ %fewer, %wait ]
  %now = load atomic i64, ptr @busy monotonic, align 8
  %called = icmp eq i64 %now, 2
  br i1 %called, label %end, label %spin
spin:
  %fewer = sub i64 %left, 1
  %over = icmp sle i64 %fewer, 0
  br i1 %over, label %end, label %wait
wait:
  call void @pause()
  br label %look
end:
  ret void
}}

define i32 @program(ptr %programs, i64 %k, i64 %count) {{   ; part k: the k-th of some programs
  %place = getelementptr ptr, ptr %programs, i64 %k
  %function = load ptr, ptr %place
  %status = call i32 %function()
  %after = add i64 %count, %k
  %to = getelementptr i64, ptr %programs, i64 %after
  %wide = sext i32 %status to i64
  store i64 %wide, ptr %to
  ret i32 %status
}}
"""

# A helper that wakes shall not do so on the caller's core: a kernel that packs threads on few cores
# left it there for a whole job of a millisecond (2048 x 784 ELBO after a pause: 1,250 us for 830).
_ELSEWHERE = """
define internal i64 @thread() {{
  %id = call i32 inttoptr (i64 {gettid} to ptr)()
  %wide = zext i32 %id to i64
  ret i64 %wide
}}

define internal void @elsewhere(ptr %state) {{
entry:
  %mask = alloca i64
  %core = call i32 inttoptr (i64 {sched_getcpu} to ptr)()
  %number = zext i32 %core to i64
  %bit = shl i64 1, %number
  %others = xor i64 %bit, -1
  %cores = load i64, ptr @cores
  %left = and i64 %cores, %others
  %some = icmp ne i64 %left, 0
  br i1 %some, label %set, label %end
set:
  store i64 %left, ptr %mask
  %place = getelementptr i64, ptr %state, i64 3
  %thread = load i64, ptr %place
  %id = trunc i64 %thread to i32
  %done = call i32 inttoptr (i64 {sched_setaffinity} to ptr)(i32 %id, i64 8, ptr %mask)
  br label %end
end:
  ret void
}}
"""
_ANYWHERE = """
define internal i64 @thread() {
  ret i64 0
}
define internal void @elsewhere(ptr %state) {
  ret void
}
"""


class Team:
    """Helpers that run while the process does.

    run: the address of int64 run(job, argument, count, helpers), 0 if all parts went well.
    """

    def __init__(self, helpers: int):
        from ._llvm import machine_code

        code = _CODE.format(
            helpers=max(1, helpers),
            threads=helpers + 1,
            pause=_PAUSE.get(platform.machine(), ""),
            elsewhere=_elsewhere(),
            **_addresses(ctypes.pythonapi, "PyThread_acquire_lock", "PyThread_release_lock"),
        )
        engine = machine_code(code)
        self.helpers = helpers
        self.helpers_at = engine.get_global_value_address("helpers")
        self.run, self.program = (engine.get_function_address(n) for n in ("run", "program"))
        self._call = ctypes.CFUNCTYPE(
            ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )(self.run)
        self._start(engine)
        engine.detach()  # never freed: the helpers are in it until the process ends

    def _start(self, engine: Any) -> None:
        api = ctypes.pythonapi
        allocate, start = api.PyThread_allocate_lock, api.PyThread_start_new_thread
        allocate.restype = start.restype = ctypes.c_void_p
        start.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

        def closed_lock() -> int:
            lock = allocate()
            api.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
            return lock

        def word(name: str, at: int = 0) -> ctypes.c_int64:
            place = engine.get_global_value_address(name) + at
            return ctypes.c_int64.from_address(place)

        word("cores").value = _mask()
        word("awaited").value = closed_lock()
        word("budget").value = round(SPIN_US * _turns_per_us(engine))
        for i in range(self.helpers):
            word("helpers", 128 * i + 8).value = closed_lock()
            word("helpers", 128 * i + 16).value = i + 1  # the caller is 0
            state = self.helpers_at + 128 * i
            start(engine.get_function_address("help"), state)

    def programs(self, addresses: list[int]) -> list[int]:
        """int32 program() of all addresses at the same time; what each returned."""
        count = len(addresses)
        given = np.array([*addresses, *[0] * count], np.int64)
        self._call(self.program, given.ctypes.data, count, min(count - 1, self.helpers))
        return given[count:].tolist()


def _addresses(library: Any, *names: str) -> dict[str, int | None]:
    return {n: ctypes.cast(getattr(library, n), ctypes.c_void_p).value for n in names}


def _elsewhere() -> str:
    """What keeps a waking helper from the caller's core, where the system has the means."""
    try:
        libc = ctypes.CDLL(None)
        return _ELSEWHERE.format(**_addresses(libc, "gettid", "sched_getcpu", "sched_setaffinity"))
    except (OSError, TypeError, AttributeError):
        return _ANYWHERE


def _mask() -> int:
    """The cores that this process may use, a bit for each; 0 if there are too many for that."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {64}
    return sum(1 << core for core in cores) if max(cores) < 63 else 0


def _turns_per_us(engine: Any) -> float:
    turns = ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address("turns"))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        turns(2000)
        best = min(best, time.perf_counter() - started)
    return 2000 / (best * 1e6)
