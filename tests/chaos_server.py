"""The scripted server by the names that tests of the gateway know it by."""

from breakeven.wire.behaviours import TRANSPORT as BEHAVIOURS
from breakeven.wire.completions import ScriptedRequest, document, events
from breakeven.wire.scripted import ScriptedServer as ChaosServer
from breakeven.wire.scripted import scripted_process as chaos_process

__all__ = ["BEHAVIOURS", "ChaosServer", "ScriptedRequest", "chaos_process", "document", "events"]
