"""The shape tracer. `log_io`, `trace` and `diff` are what to reach for; all three are exported by `tools`."""

from lab.tracer.compare import diff
from lab.tracer.frames import log_io, see_through
from lab.tracer.session import trace

__all__ = ["diff", "log_io", "see_through", "trace"]
