"""Real engines swap within a memory budget, serve all of OpenAI's protocol, and are gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from golden_server import golden_server

from breakeven.engines.kinds import ENGINES
from breakeven.engines.source import parse_source
from breakeven.engines.start import start, weights_of
from breakeven.errors import UserError
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, LocalPlan
from breakeven.gateway.plan.origins import READER_SLO, plan_of_models
from breakeven.gateway.shared.layout import Count, Known, State, UnderWay
from breakeven.gateway.swap.effects import (
    EngineFailed,
    EngineLoaded,
    Engines,
    EngineUnloaded,
    Event,
    answers_strangers,
    scrubbed,
)
from breakeven.gateway.swap.needs import check_local, is_synthetic, local_backends, needs_of, threads_of
from breakeven.gateway.swap.types import prepare
from breakeven.gateway.swap.watch import Swapper, _recipe
from breakeven.hardware.placement import Placement
from tests.gateway_property_fixtures import gateway
from tests.gateway_swap_fixtures import Pretending, ask, block_for, described, plan_of

PATIENCE_S = 90.0


def local(name: str, model: Path | str, **rest: object) -> BackendPlan:
    plan = LocalPlan(model=str(model), context=256, slots=2, threads=1, **rest)  # type: ignore[arg-type]
    return BackendPlan(name=name, local=plan)


class Watched:
    """A swapper whose clock and engines are told; worker 1's cells are the test's."""

    def __init__(self, plan: GatewayPlan) -> None:
        self.now_s = 100.0
        self.block, self.rows = block_for(plan)
        self.told: list[Pretending] = []

        def effects(tell: Callable[[Event], None]) -> Pretending:
            self.told.append(Pretending(tell))
            return self.told[0]

        self.swapper = Swapper(plan, self.block, self.rows, effects=effects, clock=lambda: self.now_s)

    @property
    def effects(self) -> Pretending:
        return self.told[0]

    def known(self, name: str, column: Known) -> float:
        return self.block.known.get(0, self.rows[name], column)

    def state(self, name: str) -> State:
        return State(int(self.known(name, Known.STATE)))

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        self.swapper.tick()


@pytest.fixture
def pair(tmp_path: Path) -> GatewayPlan:
    """Two small models of which memory holds one."""
    backends = (local("dense", described(tmp_path, "llama")), local("moe", described(tmp_path, "qwen3moe")))
    needs = needs_of(backends)
    return plan_of(*backends, memory_bytes=max(need.bytes for need in needs) + 1000, minimum_dwell_s=0.0)


def test_no_local_engine_looks_ready_before_it_is(pair: GatewayPlan) -> None:
    far = BackendPlan(name="far", url="http://127.0.0.1:1/v1")
    plan = replace(pair, backends=(*pair.backends, far))
    block, rows = block_for(plan)
    prepare(plan, block, rows)
    states = [State(int(block.known.get(0, rows[name], Known.STATE))) for name in ("dense", "moe", "far")]
    assert states == [State.UNLOADED, State.UNLOADED, State.READY]


def test_cells_tell_what_happens(pair: GatewayPlan) -> None:
    w = Watched(pair)
    w.swapper.tick()
    assert w.effects.loads == [("dense", 1)]
    assert (w.state("dense"), w.state("moe")) == (State.LOADING, State.UNLOADED)
    w.effects.written["dense"] = 0.5
    w.pass_s(1.0)
    assert w.known("dense", Known.PROGRESS) == 0.25
    w.effects.written.clear()
    w.pass_s(0.5)
    assert 0.0 < w.known("dense", Known.PROGRESS) < 1.0
    w.pass_s(1000.0)
    assert w.known("dense", Known.PROGRESS) == 0.99
    w.effects.tell(EngineLoaded("dense", 4321, 2.0, 10, "/invocations"))
    assert "dense answers at /invocations whoever asks on this machine" in w.swapper.warnings[0]
    assert (w.state("dense"), w.known("dense", Known.PORT), w.known("dense", Known.PROGRESS)) == (State.READY, 4321, 1)
    assert w.known("dense", Known.LOAD_S) == 0.0
    assert w.known("moe", Known.LOAD_S) > 0.0

    w.block.load.put(1, w.rows["moe"], UnderWay.WANTED, 2)
    w.block.load.put(1, w.rows["dense"], UnderWay.IN_FLIGHT, 1)
    w.pass_s(61.0)
    w.pass_s(61.0)
    assert w.state("dense") is State.DRAINING
    w.pass_s(10.0)
    assert w.effects.unloads == []
    w.block.load.put(1, w.rows["dense"], UnderWay.IN_FLIGHT, 0)
    w.pass_s(0.0)
    assert w.effects.unloads == ["dense"]
    w.effects.tell(EngineUnloaded("dense"))
    assert w.effects.loads == [("dense", 1), ("moe", 1)]
    assert (w.state("dense"), w.known("dense", Known.PORT)) == (State.UNLOADED, 0)
    w.effects.tell(EngineFailed("moe", "it fell over"))
    assert w.state("moe") is State.FAILED
    assert "moe could not be run here: it fell over" in w.swapper.warnings


def test_a_request_takes_as_long_as_was_counted(pair: GatewayPlan) -> None:
    """Service time = mean TTFT 0.5 s + 40 tokens of 20 ms: decides what a queue is worth."""
    w = Watched(pair)
    row = w.rows["dense"]
    for column, value in {
        Count.TTFT_NS: 5_000_000_000,
        Count.TTFT_COUNT: 10,
        Count.TPOT_NS: 160_000_000,
        Count.TPOT_COUNT: 8,
        Count.OUTPUT_TOKENS: 400,
        Count.OK: 10,
    }.items():
        w.block.count.put(1, row, column, value)
    assert w.swapper._service_s(row) == pytest.approx(0.5 + 40 * 0.02)
    assert w.swapper._service_s(w.rows["moe"]) == 5.0


def test_another_plan_keeps_engines_and_lets_others_go(pair: GatewayPlan, tmp_path: Path) -> None:
    w = Watched(pair)
    w.swapper.tick()
    w.effects.tell(EngineLoaded("dense", 4321, 2.0, None))
    third = local("third", described(tmp_path, "qwen3"))
    plan = plan_of(pair.backends[0], third, memory_bytes=pair.memory_bytes)
    w.swapper.replan(plan, {"dense": 0, "third": 2})
    w.swapper.tick()
    assert w.state("dense") is State.READY
    other = replace(pair.backends[0], local=replace(pair.backends[0].local, context=128))  # type: ignore[type-var]
    w.swapper.replan(replace(plan, backends=(other, third)), {"dense": 0, "third": 2})
    w.swapper.tick()
    assert w.state("dense") is State.DRAINING
    w.pass_s(1.0)
    w.effects.tell(EngineUnloaded("dense"))
    w.pass_s(0.0)
    assert w.effects.loads[-1] in (("dense", 1), ("third", 1))
    with pytest.raises(UserError, match="needs"):
        w.swapper.replan(replace(plan, memory_bytes=1000), {"dense": 0, "third": 2})


def test_engines_share_the_processors() -> None:
    plan = plan_of_models(["llama-3.2-1b", "olmoe-1b-7b"], memory_bytes=100 * 10**9)
    backends = local_backends(plan)
    needs = needs_of(backends)
    cpus = len(os.sched_getaffinity(0))
    assert set(threads_of(backends, needs, 100 * 10**9).values()) == {max(1, cpus // 2)}
    alone = max(need.bytes for need in needs)
    assert set(threads_of(backends, needs, alone).values()) == {cpus}


def test_made_up_weights_are_said_to_be_made_up_in_every_engine(tmp_path: Path) -> None:
    model = described(tmp_path, "llama")
    for engine in ENGINES:
        assert is_synthetic(local("a", model, engine=engine)), engine
    assert not is_synthetic(BackendPlan(name="far", url="http://127.0.0.1:1/v1"))


def test_a_directory_with_weights_is_not_made_up(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "vocab_size": 256}
    config |= {"intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "torch_dtype": "bfloat16"}
    config |= {"max_position_embeddings": 1024, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"packed": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"x")
    assert not is_synthetic(local("a", tmp_path, engine="vllm"))
    assert is_synthetic(local("a", tmp_path))  # llama.cpp reads no such file, so it gets a made-up one


def test_another_placement_is_another_engine(pair: GatewayPlan) -> None:
    dense = pair.backends[0]
    assert dense.local is not None
    same = replace(dense, local=replace(dense.local, pinned=True))
    for changed in ({"placement": Placement(gpu_layers=0)}, {"arguments": ("--no-mmap",)}):
        other = replace(dense, local=replace(dense.local, **changed))
        assert _recipe(other) != _recipe(dense)
    assert _recipe(same) == _recipe(dense)


def test_one_command_makes_a_plan() -> None:
    plan = plan_of_models(["olmoe-1b-7b", "llama-3.2-1b", "http://127.0.0.1:9/v1#far"], memory_bytes=50 * 10**9)
    assert [backend.name for backend in plan.backends] == ["llama-3.2-1b", "olmoe-1b-7b", "far"]
    assert [backend.kind for backend in plan.backends] == ["dense", "moe", "unknown"]
    assert plan.backends[2].url == "http://127.0.0.1:9/v1"
    assert plan.backends[0].endpoints[-1] == "/v1/messages/count_tokens"
    (policy,) = plan.policies
    assert (policy.model, policy.policy, policy.slo) == ("breakeven", "breakeven", READER_SLO)
    assert policy.backends == ("llama-3.2-1b", "olmoe-1b-7b", "far")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "name the models to serve"),
        (["llama-3.2-1b", "llama-3.2-1b"], "two things would be called llama-3.2-1b"),
        (["no-such.gguf"], "no such file"),
        (["http://127.0.0.1:9/v1"], "model-name"),
        (["olmoe-1b-7b"], r"olmoe-1b-7b needs [\d.]+ GB and local engines may use 1.0 GB together; give it"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(models: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_of_models(models, memory_bytes=10**9)


def test_local_is_a_model_and_not_a_server() -> None:
    with pytest.raises(UserError, match="write url: http"):
        check_local(plan_of(local("x", "http://127.0.0.1:9/v1#x"), memory_bytes=10**9))


def test_no_key_reaches_an_engine() -> None:
    kept = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/x", "LC_ALL": "C"}
    secret = {
        "OPENAI_API_KEY": "1",
        "HF_TOKEN": "2",
        "VLLM_API_KEY": "3",
        "BREAKEVEN_ADMIN_SECRET": "4",
        "HUGGINGFACE_HUB_TOKEN": "5",
        "http_proxy": "http://u:p@h",
        "AWS_ACCESS_KEY_ID": "6",
        "VLLM_AUTHORIZATION": "7",
    }
    assert scrubbed({**kept, **secret}) == kept


def test_an_engine_that_asks_for_no_key_is_found_out() -> None:
    with golden_server() as open_to_all, golden_server(key="its-own") as keyed:
        assert answers_strangers(open_to_all.url) == "/v1/completions"
        assert answers_strangers(keyed.url) == ""
    assert answers_strangers("http://127.0.0.1:1") == ""


async def until(condition: Callable[[], bool]) -> None:
    """Patient, because the machine may be busy; TimeoutError says that it never came."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)


def engines_below() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie by now
            if "breakeven.engines.llama_cpp.child" in child.cmdline():
                found.append(child)
    return found


def test_two_real_engines_swap_within_memory(
    pair: GatewayPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "canary-5d1f")

    async def scenario() -> None:
        block, rows = block_for(pair)
        swapper = Swapper(pair, block, rows, logs=tmp_path / "logs")
        task = asyncio.create_task(swapper.run())

        def state(name: str) -> State:
            assert not swapper.failures
            assert len(engines_below()) <= 1
            return State(int(block.known.get(0, rows[name], Known.STATE)))

        async def answers(name: str) -> None:
            url = f"http://127.0.0.1:{int(block.known.get(0, rows[name], Known.PORT))}"
            key = block.engine_key(name)
            status, body = await asyncio.to_thread(ask, f"{url}/v1/models", None, key)
            assert (status, body["data"][0]["id"]) == (200, name)
            completion = {"model": name, "prompt": [1, 2, 3], "max_tokens": 2}
            assert (await asyncio.to_thread(ask, f"{url}/v1/completions", completion, key))[0] == 200
            for other in (None, "", block.engine_key("another")):
                assert (await asyncio.to_thread(ask, f"{url}/v1/completions", completion, other))[0] == 401
            (engine,) = engines_below()
            assert key not in json.dumps([engine.cmdline(), engine.environ()])
            assert stat.S_IMODE((tmp_path / "logs" / f"{name}.log").stat().st_mode) == 0o600
            assert not any("answers at" in warning for warning in swapper.warnings)

        try:
            await until(lambda: state("dense") is State.READY)
            await answers("dense")
            (engine,) = engines_below()
            assert "canary-5d1f" not in json.dumps(engine.environ())
            assert engine.environ()["GOMP_SPINCOUNT"] == "10000"
            block.load.put(1, rows["moe"], UnderWay.WANTED, 3)
            await until(lambda: state("moe") is State.READY)
            block.load.put(1, rows["moe"], UnderWay.WANTED, 0)
            await answers("moe")
            assert state("dense") is State.UNLOADED
            block.load.put(1, rows["dense"], UnderWay.WANTED, 1)
            await until(lambda: state("dense") is State.READY)
            block.load.put(1, rows["dense"], UnderWay.WANTED, 0)
            await answers("dense")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert engines_below() == []

    asyncio.run(scenario())


def test_death_is_noticed_and_the_engine_comes_back(pair: GatewayPlan, tmp_path: Path) -> None:
    async def scenario() -> None:
        plan = plan_of(pair.backends[0], memory_bytes=pair.memory_bytes)
        block, rows = block_for(plan)
        swapper = Swapper(plan, block, rows, logs=tmp_path / "logs")
        task = asyncio.create_task(swapper.run())
        try:
            await until(lambda: block.known.get(0, 0, Known.STATE) == State.READY)
            (engine,) = engines_below()
            engine.kill()
            await until(lambda: block.known.get(0, 0, Known.STATE) == State.FAILED)
            assert "killed by signal 9" in swapper.failures["dense"]
            await until(lambda: block.known.get(0, 0, Known.STATE) == State.READY)
            assert swapper.failures == {}
            assert [child.pid for child in engines_below()] != [engine.pid]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_what_cannot_be_loaded_says_why(pair: GatewayPlan, tmp_path: Path) -> None:
    """A file that is well formed, with a tokenizer that no engine knows."""
    described_by = pair.backends[0].local
    assert described_by is not None
    weights = weights_of(parse_source(described_by.model), "Q4_K_M", 0, None)
    assert weights is not None
    name = b"tokenizer.ggml.model" + struct.pack("<IQ", 8, 4)
    assert name + b"gpt2" in weights.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(weights.read_bytes().replace(name + b"gpt2", name + b"nope"))

    async def scenario() -> None:
        events: list[Event] = []
        engines = Engines(tmp_path / "logs", events.append)
        engines.load(local("../x; touch pwned #$(touch pwned)", broken), 1)
        await until(lambda: bool(events))
        assert isinstance(events[0], EngineFailed)
        assert "could not load" in events[0].reason
        assert [path.parent for path in tmp_path.rglob("*.log")] == [tmp_path / "logs"]
        assert not Path("pwned").exists()  # no shell reads a name
        assert "\n" not in events[0].reason
        await engines.close()
        assert events[1:] == []

    asyncio.run(scenario())


ORPHANS = """
import asyncio, sys
from pathlib import Path
from breakeven.gateway.plan.model import BackendPlan, LocalPlan
from breakeven.gateway.swap.effects import Engines
async def main():
    plan = LocalPlan(model=sys.argv[1], context=128, slots=1)
    Engines(Path(sys.argv[2]), lambda event: print(event, flush=True)).load(BackendPlan(name="dense", local=plan), 1)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help to end orphans is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_engine_outlives_us(pair: GatewayPlan, tmp_path: Path, number: signal.Signals) -> None:
    plan = pair.backends[0].local
    assert plan is not None
    command = [sys.executable, "-c", ORPHANS, plan.model, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        try:
            assert us.stdout.readline().startswith("EngineLoaded(name='dense'")
            (engine,) = psutil.Process(us.pid).children(recursive=True)
        finally:
            us.send_signal(number)
        us.wait()
    engine.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def smol(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a real model is served as the gateway serves it."""
    log = tmp_path_factory.mktemp("smol") / "log"
    source = replace(parse_source(str(smollm2_gguf)), name="smol")
    with ExitStack() as stack:
        running = start(
            stack,
            source,
            smollm2_gguf,
            context=512,
            slots=2,
            log=log,
            threads=1,
            share_prefixes=True,
            environment=scrubbed(os.environ),
        )
        yield f"{running.backend.url}/v1"


WORDS = {"model": "smol", "messages": [{"role": "user", "content": "Name a city."}], "temperature": 0}


def test_structured_output_is_kept_by_a_local_engine(smol: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
    status, body = ask(f"{smol}/chat/completions", {**WORDS, "max_tokens": 40, "response_format": shape})
    assert status == 200
    assert json.loads(body["choices"][0]["message"]["content"])["city"] in ("Paris", "Rome")


def test_logprobs_come_from_a_local_engine(smol: str) -> None:
    _, body = ask(f"{smol}/chat/completions", {**WORDS, "max_tokens": 2, "logprobs": True, "top_logprobs": 3})
    first = body["choices"][0]["logprobs"]["content"][0]
    assert len(first["top_logprobs"]) == 3
    assert first["logprob"] == max(each["logprob"] for each in first["top_logprobs"])


def test_other_endpoints_of_a_local_engine(smol: str) -> None:
    assert (
        ask(f"{smol}/responses", {"model": "smol", "input": "Hello", "max_output_tokens": 4})[1]["object"] == "response"
    )
    assert ask(f"{smol}/messages", {**WORDS, "max_tokens": 4})[1]["type"] == "message"
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    assert ask(f"{smol}/chat/completions", {**WORDS, "max_tokens": 4, "tools": tools})[0] == 200
    status, page = ask(f"{smol.removesuffix('/v1')}/metrics")
    assert status == 200
    assert "llamacpp:requests_processing" in page


def test_a_translated_answer_says_what_the_engines_own_says(smol: str, tmp_path: Path) -> None:
    """The engine's own messages and responses, and its chat in the words of those."""
    own = {"name": "own", "url": smol, "served_model": "smol", "endpoints": ["/v1/messages", "/v1/responses"]}
    turned = {"name": "turned", "url": smol, "served_model": "smol"}
    message = {**WORDS, "system": "Be short.", "max_tokens": 12}
    response = {"input": "Name a city.", "instructions": "Be short.", "temperature": 0, "max_output_tokens": 12}
    with gateway(tmp_path, {"backends": [{**one, "poll": False} for one in (own, turned)]}) as running:
        for path, asked in (("/v1/messages", message), ("/v1/responses", response)):
            said = []
            for name in ("own", "turned"):
                status, told, answer = running.ask({**asked, "model": name}, path=path)
                assert status == 200, answer
                assert ("x-breakeven-translated" in told) is (name == "turned")
                found = json.loads(answer)
                texts = found["content"] if "content" in found else found["output"][0]["content"]
                said.append((texts[0]["text"], found.get("stop_reason"), found["usage"]["output_tokens"]))
            assert said[0] == said[1], path


TEMPLATE = """{%- for tool in tools %}<|im_start|>system
{{ tool | tojson }}<|im_end|>
{% endfor %}{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_tools_reach_a_model_whose_template_knows_them(pair: GatewayPlan, tmp_path: Path) -> None:
    described_by = pair.backends[0].local
    assert described_by is not None
    plain = weights_of(parse_source(described_by.model), "Q4_K_M", 0, None)
    path = tmp_path / "with-template.gguf"
    command = [
        sys.executable,
        "-m",
        "gguf.scripts.gguf_new_metadata",
        "--chat-template",
        TEMPLATE,
        str(plain),
        str(path),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    tool = {"name": "weather", "description": "of a place", "parameters": {"type": "object", "properties": {}}}
    body = {"model": "x", "messages": WORDS["messages"], "max_tokens": 1}
    with ExitStack() as stack:
        source = parse_source(str(path))
        running = start(stack, source, path, context=512, slots=1, log=tmp_path / "log", threads=1)
        chat = f"{running.backend.url}/v1/chat/completions"
        without, with_tool = ask(chat, body), ask(chat, {**body, "tools": [{"type": "function", "function": tool}]})
    assert (without[0], with_tool[0]) == (200, 200)
    assert with_tool[1]["usage"]["prompt_tokens"] > without[1]["usage"]["prompt_tokens"] + 20


def test_a_conversation_goes_on_from_its_prefix(smol: str) -> None:
    long = {**WORDS, "messages": [{"role": "user", "content": "One two three four. " * 20}], "max_tokens": 1}
    ask(f"{smol}/chat/completions", long)
    _, again = ask(f"{smol}/chat/completions", long)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 50
