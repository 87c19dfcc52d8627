"""What is said of a GGUF's experts, against a model computed in numpy, files without an expert, and planted habits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from cli_fixtures import run_here
from inside_fixtures import PROSE
from numpy.typing import NDArray
from watch_fixtures import EXPERTS, FAMILIES, LAYERS, USED, rewritten, toy

import breakeven
from breakeven.engines.inside.summary import entropy
from breakeven.engines.inside.tally import ExpertTally
from breakeven.errors import UserError
from breakeven.lab import corpus
from breakeven.lab.surgery.container import SourceTensor, open_gguf
from breakeven.lab.surgery.prune import prune
from breakeven.lab.usage.scores import WatchedExperts, findings_of, layers_of, lost, texts_of
from breakeven.lab.usage.watch import Watched
from breakeven.results.lab import ExpertScores, Proof, WithoutExpert
from breakeven.results.store import read
from breakeven.stats.estimate import measured

F32 = np.float32
Floats = NDArray[np.float32]
GERMAN = "Der Leuchtturmwärter stieg jeden Abend die Treppe hinauf, und in der letzten Herbstnacht blieb es dunkel."


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of eight experts, of which a router takes two."""
    return toy("mixtral", tmp_path_factory.mktemp("watch") / "routed.gguf")


@pytest.fixture(scope="module")
def watched(routed: Path) -> Iterator[Watched]:
    with Watched(routed) as inside:
        yield inside


@dataclass
class Reference:
    """llama's forward pass with experts, in numpy: what each layer chose, the gate weights, output norms, the loss."""

    path: Path

    def __post_init__(self) -> None:
        reader = open_gguf(self.path)
        self.meta = reader.header.metadata
        self.weights = {t.name: np.frombuffer(t.data, F32).reshape(t.dims[::-1]) for t in reader.tensors}

    def run(
        self, tokens: list[int], silent: tuple[int, int] | None = None, never: tuple[int, int] | None = None
    ) -> float:
        """Nats; `ids`, `gates` and `norms` by layer are left behind."""
        w, meta = self.weights, self.meta
        heads, kv_heads = int(meta["llama.attention.head_count"]), int(meta["llama.attention.head_count_kv"])
        eps = float(meta["llama.attention.layer_norm_rms_epsilon"])
        x = w["token_embd.weight"][tokens]
        size = x.shape[1] // heads
        angle = np.outer(
            np.arange(len(tokens)), float(meta["llama.rope.freq_base"]) ** (-np.arange(0, size, 2) / size)
        )[:, None]

        def norm(value: Floats, name: str) -> Floats:
            return value / np.sqrt((value**2).mean(axis=-1, keepdims=True) + eps) * w[name]

        def turned(value: Floats) -> Floats:
            even, odd = value[..., 0::2], value[..., 1::2]
            out = np.empty_like(value)
            out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
            out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
            return out

        self.ids, self.gates, self.norms = [], [], []
        for layer in range(LAYERS):
            at = f"blk.{layer}."
            h = norm(x, at + "attn_norm.weight")
            q = turned((h @ w[at + "attn_q.weight"].T).reshape(len(tokens), heads, size))
            k = turned((h @ w[at + "attn_k.weight"].T).reshape(len(tokens), kv_heads, size))
            v = (h @ w[at + "attn_v.weight"].T).reshape(len(tokens), kv_heads, size)
            k, v = (np.repeat(each, heads // kv_heads, axis=1) for each in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
            scores[:, np.triu(np.ones((len(tokens), len(tokens)), bool), 1)] = -np.inf
            share = np.exp(scores - scores.max(axis=-1, keepdims=True))
            share /= share.sum(axis=-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", share, v).reshape(x.shape) @ w[at + "attn_output.weight"].T
            h = norm(x, at + "ffn_norm.weight")
            logits = h @ w[at + "ffn_gate_inp.weight"].T
            if never and never[0] == layer:
                logits[:, never[1]] = -np.inf
            ids = np.argsort(-logits, axis=1)[:, :USED]
            gate = np.exp(np.take_along_axis(logits, ids, 1))
            gate /= gate.sum(axis=1, keepdims=True)
            up = np.einsum("td,efd->tef", h, w[at + "ffn_up_exps.weight"])
            act = np.einsum("td,efd->tef", h, w[at + "ffn_gate_exps.weight"])
            out = np.einsum("tef,edf->ted", act / (1 + np.exp(-act)) * up, w[at + "ffn_down_exps.weight"])
            if silent and silent[0] == layer:
                out[:, silent[1]] = 0
            chosen = np.take_along_axis(out, ids[..., None], 1)
            x = x + (gate[..., None] * chosen).sum(axis=1)
            self.ids.append(ids)
            self.gates.append(gate)
            self.norms.append(np.linalg.norm(chosen, axis=-1))
        head = w.get("output.weight", w["token_embd.weight"])
        logits = norm(x, "output_norm.weight") @ head.T
        logits = logits[:-1].astype(np.float64)
        log_sum = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
        return float((log_sum - logits[np.arange(len(logits)), tokens[1:]]).sum())


def test_choices_scores_and_losses_are_those_of_the_model_computed_in_numpy(routed: Path, watched: Watched) -> None:
    reference = Reference(routed)
    texts = [("en", PROSE), ("de", GERMAN), ("en", PROSE[::-1])]
    seen = watched.watch(texts, weigh=True)
    assert (seen.layers, seen.n_experts, seen.n_experts_per_token) == ((0, 1), EXPERTS, USED)
    assert (seen.languages, seen.groups_S, seen.equal_gates) == (("en", "de"), (0, 1, 0), False)
    together = np.zeros_like(seen.together)
    for row, (_, text) in enumerate(texts):
        tokens = watched.tokenize(text)
        nats = reference.run(tokens)
        assert watched.nats_without([tokens], 0, None) == pytest.approx([nats], rel=3e-3)
        for layer in range(LAYERS):
            ids, given = reference.ids[layer], reference.gates[layer] * reference.norms[layer]
            np.testing.assert_array_equal(seen.choices_SLE[row, layer], np.bincount(ids.ravel(), minlength=EXPERTS))
            np.testing.assert_allclose(
                seen.given_SLE[row, layer], np.bincount(ids.ravel(), given.ravel(), EXPERTS), rtol=1e-2
            )
            for first, second in ids:
                together[seen.groups_S[row], layer, first, second] += 1
                together[seen.groups_S[row], layer, second, first] += 1
    np.testing.assert_array_equal(seen.together, together)
    # Chance spreads as many pairs as were seen.
    np.testing.assert_allclose(seen.expected.sum(axis=(2, 3)), together.sum(axis=(2, 3)), rtol=1e-4)


def test_an_expert_left_out_costs_what_it_costs_in_numpy(routed: Path, watched: Watched) -> None:
    tokens = watched.tokenize(PROSE)
    whole = watched.nats_without([tokens], 0, None)
    reference = Reference(routed)
    reference.run(tokens)
    for layer in range(LAYERS):
        # One that is chosen often, so that leaving it out is felt.
        expert = int(np.bincount(reference.ids[layer].ravel()).argmax())
        never = watched.nats_without([tokens], layer, expert)
        silent = watched.nats_without([tokens], layer, expert, silent=True)
        assert never == pytest.approx([Reference(routed).run(tokens, never=(layer, expert))], rel=3e-3)
        assert silent == pytest.approx([Reference(routed).run(tokens, silent=(layer, expert))], rel=3e-3)
        assert min(abs(never[0] - whole[0]), abs(silent[0] - whole[0])) > 1e-4 * whole[0]
    # What was left out leaves nothing behind.
    assert watched.nats_without([tokens], 0, None) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_what_files_without_the_expert_compute(family: str, tmp_path: Path) -> None:
    # One layer that routes, because a file has one number of experts for all of them.
    layers = 2 if family == "deepseek2" else 1
    path = toy(family, tmp_path / "whole.gguf", num_hidden_layers=layers)
    with Watched(path) as inside:
        tokens = inside.tokenize(PROSE)
        seen = inside.watch([("en", PROSE)], weigh=True)
        (layer,) = seen.layers
        assert seen.choices_SLE.sum() == len(tokens) * USED
        assert (seen.given_SLE > 0).sum() == (seen.choices_SLE > 0).sum()
        expert = int(seen.choices_SLE[0, 0].argmax())
        whole = inside.nats_without([tokens], 0, None)
        never = inside.nats_without([tokens], layer, expert)
        silent = inside.nats_without([tokens], layer, expert, silent=True)
    assert min(abs(never[0] - whole[0]), abs(silent[0] - whole[0])) > 1e-4 * whole[0]

    def of_experts(tensor: SourceTensor) -> bool:
        return tensor.dims[-1] == EXPERTS and any(
            name in tensor.name for name in ("_exps.", "ffn_gate_inp.", "probs_b")
        )

    def fewer(tensor: SourceTensor) -> NDArray[np.uint8]:
        parts = tensor.data.reshape(EXPERTS, -1) if of_experts(tensor) else tensor.data
        return np.delete(parts, expert, axis=0) if of_experts(tensor) else parts

    def zeroed(tensor: SourceTensor) -> NDArray[np.uint8]:
        if "ffn_down_exps." not in tensor.name:
            return tensor.data
        parts = tensor.data.copy().reshape(EXPERTS, -1)
        parts[expert] = 0
        return parts

    architecture = open_gguf(path).header.architecture
    rewritten(path, tmp_path / "seven.gguf", fewer, {f"{architecture}.expert_count": EXPERTS - 1})
    rewritten(path, tmp_path / "zero.gguf", zeroed)
    for name, expected in (("seven.gguf", never), ("zero.gguf", silent)):
        with Watched(tmp_path / name) as other:
            assert other.nats_without([tokens], 0, None) == pytest.approx(expected, rel=1e-6)


def test_where_all_run_at_equal_weights_an_expert_left_out_costs_what_pruning_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 256)
    random = toy("mixtral", tmp_path / "random.gguf", num_hidden_layers=1, num_experts_per_tok=EXPERTS)

    def even(tensor: SourceTensor) -> NDArray[np.uint8]:
        return np.zeros_like(tensor.data) if "ffn_gate_inp." in tensor.name else tensor.data

    path = rewritten(random, tmp_path / "even.gguf", even)
    (tmp_path / "text.txt").write_text("\n".join(f"{n}. {GERMAN}" for n in range(14)))
    scores = breakeven.experts.score(path, tmp_path / "text.txt", budget_s=0.1, out=tmp_path / "score.json")
    assert scores.switched_off is not None
    assert scores.switched_off.startswith("its output is zero")
    (layer,) = scores.layers
    assert len(set(layer.tokens)) == 1
    coldest = layer.without[0].expert
    prune(path, tmp_path / "seven.gguf", EXPERTS - 1, tmp_path / "score.json")
    with Watched(path) as watched, Watched(tmp_path / "seven.gguf") as pruned:
        tokens = watched.tokenize(GERMAN)
        silent = watched.nats_without([tokens], 0, coldest, silent=True)
        assert pruned.nats_without([tokens], 0, None) == pytest.approx(silent, rel=1e-5)


def planted(seed: int = 0, blocks: int = 20, tokens: int = 400) -> WatchedExperts:
    """Two languages, two layers of eight experts of which two are used, with what is to be found in layer 7 alone.

    There expert 3 serves Japanese, expert 5 works much and gives little, 0 and 1 go together in English.
    """
    rng = np.random.default_rng(seed)
    tally = ExpertTally([4, 7], 8, 2)
    groups = [0] * blocks + [1] * blocks
    for group in groups:
        # A block has its own topic, as text does.
        topic = rng.dirichlet(np.full(8, 20.0), size=2)
        ids, given = np.empty((2, tokens, 2), np.int32), np.empty((2, tokens, 2), F32)
        for layer in range(2):
            odds = topic[layer].copy()
            if layer == 1:
                odds[3], odds[5] = (0.3 if group else 0.005), 0.3
            drawn = np.log(odds) + rng.gumbel(size=(tokens, 8))
            if layer == 1 and group == 0:
                drawn[:, 1] = np.where(rng.random(tokens) < 0.7, drawn[:, 0] - 0.01, drawn[:, 1])
            ids[layer] = np.argsort(-drawn, axis=1)[:, :2]
            given[layer] = rng.gamma(4.0, 0.25, size=(tokens, 2))
            if layer == 1:
                given[layer][ids[layer] == 5] *= 0.1
        tally.add(group, ids, given)
    with TemporaryDirectory() as folder:
        tally.save(Path(folder) / "tally.npz")
        arrays = dict(np.load(Path(folder) / "tally.npz"))
    return WatchedExperts(
        layers=(4, 7),
        n_experts=8,
        n_experts_per_token=2,
        equal_gates=False,
        languages=("en", "ja"),
        groups_S=tuple(groups),
        choices_SLE=arrays["choices"],
        given_SLE=arrays["given"],
        together=arrays["together"],
        expected=arrays["expected"],
        squares=arrays["squares"],
        tokens_S=tuple([tokens] * len(groups)),
        observing_overhead=0.0,
    )


def test_what_was_planted_is_named_and_nothing_else() -> None:
    for seed in range(5):
        seen = planted(seed)
        plain, layer = layers_of(seen, {})
        found = findings_of(seen, [plain, layer])
        assert {(each.layer, each.expert, each.kind, each.language) for each in found} == {
            (7, 3, "one language", "ja"),
            (7, 5, "lagging", None),
        }
        assert [pair.experts for pair in layer.pairs] == [[0, 1]]
        assert layer.pairs[0].languages == ["en"]
        assert layer.pairs[0].over_chance > 1.5
        assert plain.pairs == []
        assert sum(layer.by_language["en"]) == pytest.approx(1)
        assert sum(layer.contribution_by_language["ja"]) == pytest.approx(1)
        assert layer.score is not None
        assert np.argmin(layer.score) == 5
        for text in texts_of(seen, [1] * 40):
            # The topics of blocks make it larger than independent tokens would.
            assert text.sampling_error > np.sqrt(0.25 * 0.75 / text.tokens) / 2


def test_what_is_lost_decides_where_an_expert_was_switched_off() -> None:
    seen = planted()

    def tried(expert: int, en: tuple[float, float, float], ja: tuple[float, float, float]) -> WithoutExpert:
        nats = {"en": measured(*en, 10), "ja": measured(*ja, 10)}
        return WithoutExpert(expert=expert, nats_per_token=nats, bits_per_byte=nats)

    missed = [tried(3, (0.0, -0.01, 0.01), (0.5, 0.4, 0.6)), tried(5, (0.2, 0.1, 0.3), (0.2, 0.1, 0.3))]
    found = findings_of(seen, layers_of(seen, {7: missed}))
    assert [(each.expert, each.kind) for each in found] == [(3, "one language")]
    assert "0.500 nats" in found[0].text
    # Japanese does not need it alone; the next interval says nothing, and takes nothing back.
    doubted = [tried(3, (0.5, 0.4, 0.6), (0.5, 0.4, 0.6)), tried(5, (0.1, -0.1, 0.3), (0.0, -0.2, 0.2))]
    busy = int(seen.choices_SLE.sum(axis=0)[0].argmax())
    idle = tried(busy, (0.001, -0.002, 0.004), (0.0, -0.003, 0.003))
    unknown = tried((busy + 1) % EXPERTS, (0.1, -0.1, 0.3), (0.0, -0.1, 0.1))
    found = findings_of(seen, layers_of(seen, {7: doubted, 4: [idle, unknown]}))
    assert {(each.layer, each.expert, each.kind) for each in found} == {(7, 5, "lagging"), (4, busy, "lagging")}


def test_an_expert_that_no_token_reached_has_no_score_and_one_block_no_interval() -> None:
    seen = planted()
    seen.choices_SLE[:, 0, 6] = 0
    seen.given_SLE[:, 0, 6] = 0
    layer = layers_of(seen, {})[0]
    assert layer.dead == [6]
    assert layer.score[6] is None
    assert layer.score_by_language["ja"][6] is None
    assert lost([1.0, 2.0], [10, 10]) == measured(0.15, None, None, 2)
    estimate = lost([1.0, 2.0, 3.0, 2.0], [10, 10, 10, 10])
    assert (estimate.value, estimate.n) == (0.2, 4)
    assert estimate.low < 0.15 < 0.25 < estimate.high


def test_the_command_writes_what_prune_reads_and_says_how_many_were_tried(
    routed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Six blocks a language are asked for; small ones cost little.
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 256)
    for language, text in (("en", PROSE), ("de", GERMAN)):
        (tmp_path / "text" / language).mkdir(parents=True)
        (tmp_path / "text" / language / "a.txt").write_text("\n\n".join(f"{n}. {text}" for n in range(16)))
    out = tmp_path / "score.json"
    said = run_here(
        "experts", "score", str(routed), "--text", str(tmp_path / "text"), "--budget", "1s", "--out", str(out), "--json"
    )
    assert said.returncode == 0, said.stderr
    scores = msgspec.json.decode(out.read_bytes(), type=ExpertScores)
    assert msgspec.json.decode(said.stdout, type=ExpertScores) == scores
    assert json.loads(out.read_text())["schema"] == "breakeven.experts/1"
    assert [text.language for text in scores.languages] == ["de", "en"]
    assert [layer.layer for layer in scores.layers] == [0, 1]
    tried = [each for layer in scores.layers for each in layer.without]
    assert 0 < scores.tried == len(tried) <= LAYERS * EXPERTS
    if scores.tried < LAYERS * EXPERTS:
        assert any(f"{scores.tried} of 16 experts" in caveat for caveat in scores.caveats)
    # The least scored of each layer come first.
    for layer in scores.layers:
        order = sorted(range(EXPERTS), key=lambda expert: layer.score[expert])
        assert [each.expert for each in layer.without] == order[: len(layer.without)]
    assert all(estimate.low is not None for each in tried for estimate in each.nats_per_token.values())
    loads = run_here("experts", "load", str(routed), "--text", str(tmp_path / "text"), "--quiet")
    assert loads.returncode == 0, loads.stderr
    assert "routed.gguf: the busiest expert takes" in loads.stdout
    assert "switched off" not in loads.stdout
    pruned = tmp_path / "pruned.gguf"
    text = ("--text", str(tmp_path / "text"))
    said = run_here("experts", "prune", str(routed), "--keep", "6", "--scores", str(out), *text, "--out", str(pruned))
    assert said.returncode == 0, said.stderr
    proof = read(tmp_path / "pruned.proof.json", Proof)
    assert proof.experts is not None
    assert proof.experts.layers[1].score == scores.layers[1].score
    assert proof.experts_after is not None
    assert [len(layer.tokens) for layer in proof.experts_after.layers] == [6, 6]
    assert {*proof.experts_after.layers[0].by_language} == {"en", "de"}


def test_what_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    dense = toy("llama", tmp_path / "dense.gguf")
    (tmp_path / "text.txt").write_text((PROSE + "\n") * 110)
    said = run_here("experts", "load", str(dense), "--text", str(tmp_path / "text.txt"), "--quiet")
    assert (said.returncode, "dense" in said.stderr) == (2, True)
    (tmp_path / "short.txt").write_text(PROSE)
    said = run_here("experts", "score", str(dense), "--text", str(tmp_path / "short.txt"), "--quiet")
    assert said.returncode == 2
    with pytest.raises(UserError, match=r"config\.json"):
        Watched(tmp_path)
    with pytest.raises(UserError):
        Watched(tmp_path / "none.gguf")


def test_one_expert_is_in_balance_and_a_layer_that_gives_nothing_has_no_shares() -> None:
    assert entropy(np.array([[5.0], [0.0]])).tolist() == [1.0, 1.0]
    seen = planted()
    seen.given_SLE[:, 0] = 0
    silent, other = layers_of(seen, {})
    assert silent.contribution_by_language == {"en": [None] * 8, "ja": [None] * 8}
    assert sum(other.contribution_by_language["ja"]) == pytest.approx(1)


def test_no_more_is_read_than_the_model_has_positions_for(tmp_path: Path) -> None:
    path = toy("mixtral", tmp_path / "short.gguf", max_position_embeddings=64)
    (tmp_path / "text.txt").write_text((PROSE + "\n") * 110)
    scores = breakeven.experts.score(path, tmp_path / "text.txt", threads=1, budget_s=0.1)
    (text,) = scores.languages
    assert text.tokens <= 64 * text.blocks
    assert text.bytes < 64 * text.blocks * 8
    assert any("longer than the model's context of 64 tokens" in caveat for caveat in scores.caveats)
    with Watched(path, 1) as watched:
        for letters in (PROSE * 9, "鏡" * 500, "x"):
            fitting = watched.fitting(letters, 20)
            assert letters.startswith(fitting)
            assert 0 < len(watched.tokenize(fitting)) <= 20
