import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import psutil
import pytest

HELP = [sys.executable, "-m", "samestep.cli", "--help"]


def test_help_answers_at_once():
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(HELP, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.5  # 0.3 s on a quiet machine; see benchmarks/start.py


@pytest.mark.parametrize("verb", ["train", "verify", "digest", "compare"])
def test_no_verb_imports_torch_for_its_help(verb):
    code = f"import sys; sys.argv = ['samestep', {verb!r}, '--help']\nfrom samestep.cli import main\n"
    code += "try:\n    main()\nfinally:\n    assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and verb in done.stdout, done.stderr


def test_train_writes_a_whole_run_and_prints_its_summary(samestep, tiny, tmp_path):
    result = samestep("train", tiny)
    assert result.code == 0, result.err
    assert "step 1/12" in result.err and "step 12/12" in result.err
    for word in ("steps", "final_loss", "tokens_per_second", "held_out_bits_per_byte", "zlib", "digest", "sha256:"):
        assert word in result.out
    run = tmp_path / "runs" / "tiny-1"
    assert {p.name for p in run.iterdir()} == {
        *("recipe.yaml", "journal.jsonl", "logs", "model", "report.html", "report.md")
    }
    assert samestep("digest", run).out.strip() in result.out
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    started = [e for e in events if e["event"] == "started"]
    assert sorted(e["lanes"] for e in started) == [[0, 4], [4, 8]]
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 13))
    assert [e["step"] for e in steps if "digest" in e] == [4, 8, 12]
    assert len({e["tokens"] for e in steps}) > 1  # masked targets of uneven count


def test_json_is_one_object_on_stdout_and_nothing_else(samestep, tiny):
    result = samestep("train", tiny, "--json", "steps=2")
    assert {"steps", "final_loss", "tokens_per_second", "digest"} <= result.json.keys()
    assert result.json["steps"] == 2


def test_a_resolved_recipe_trains_to_the_same_digest(samestep, tiny, tmp_path):
    first = samestep("train", tiny, "--run", "one", "--json", "steps=3").json
    again = samestep("train", tmp_path / "one" / "recipe.yaml", "--run", "two", "--json").json
    assert again["digest"] == first["digest"]
    same = samestep("compare", "one", "two", "--json")
    assert same.code == 0 and same.json["same"]
    other = samestep("train", tiny, "--run", "three", "--json", "steps=3", "seed=9")
    assert other.code == 0
    differ = samestep("compare", "one", "three")
    assert differ.code == 5 and "seed" in differ.out


@contextlib.contextmanager
def long_run(tiny, folder, cache, replicas, *changes):
    """A run in its first steps: the process and its replicas, of which none may be left afterwards."""
    command = [sys.executable, "-m", "samestep.cli", "train", str(tiny), "steps=100000", f"run.cache={cache}"]
    command += ["--replicas", str(replicas), *changes]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    with process.stderr:
        while "step 1/" not in process.stderr.readline():
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == replicas
        yield process, started
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in started)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_asks_for_a_checkpoint_and_leaves_no_process(tiny, tmp_path, cache, number, code):
    with long_run(tiny, tmp_path, cache, 2) as (process, _):
        process.send_signal(number)
        assert process.wait(10) == code
        last = process.stderr.read().splitlines()[-1]
    (saved,) = (tmp_path / "runs/tiny-1/checkpoints").iterdir()
    step = saved.name.removeprefix("step-")
    assert f"stopped by {number.name} with a checkpoint of step {step}; samestep resume runs/tiny-1 goes on" in last
    assert not (tmp_path / "runs/tiny-1/model").exists()


def test_a_signal_before_the_first_step_ends_the_run_and_leaves_no_process(tiny, tmp_path, cache):
    command = [sys.executable, "-m", "samestep.cli", "train", str(tiny), f"run.cache={cache}", "--run", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    with process.stderr:
        while not (started := psutil.Process(process.pid).children()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "stopped by SIGINT before the first step; samestep resume run begins anew" in process.stderr.read()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in started)


def test_ctrl_c_twice_ends_at_once(tiny, tmp_path, cache):
    with long_run(tiny, tmp_path, cache, 2) as (process, replicas):
        replicas[0].suspend()  # the step that is waited for will not end
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 130
        assert "no replica is left running" in process.stderr.read()


def test_a_replica_that_is_killed_is_named_and_the_run_goes_on(tiny, tmp_path, cache):
    with long_run(tiny, tmp_path, cache, 3, "run.replace=false") as (process, replicas):
        os.kill(replicas[1].pid, signal.SIGKILL)
        while "was killed" not in (line := process.stderr.readline()):
            assert process.poll() is None
        assert line.startswith("replica 1 was killed by SIGKILL; 2 replicas go on and compute step ")
        while "2 replicas" not in process.stderr.readline():  # the next progress line
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75


def test_under_fast_a_killed_replica_ends_the_run_within_two_seconds_with_one_line(tiny, tmp_path, cache):
    with long_run(tiny, tmp_path, cache, 3, "sync.strategy=fast") as (process, replicas):
        os.kill(replicas[1].pid, signal.SIGKILL)
        assert process.wait(2) == 4
        last = process.stderr.read().splitlines()[-1]
    assert "killed by SIGKILL" in last and f"pid {replicas[1].pid}" in last and "replica 1, step " in last
    assert last.endswith("samestep resume runs/tiny-1 begins with step 1: no checkpoint had been written yet")


def test_a_run_that_ends_after_a_checkpoint_says_that_it_goes_on_from_there(tiny, tmp_path, cache):
    with long_run(tiny, tmp_path, cache, 2, "sync.strategy=fast", "recover.checkpoint_every=1") as (process, replicas):
        while not list(tmp_path.glob("runs/tiny-1/checkpoints/step-*[0-9]")):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(replicas[1].pid, signal.SIGKILL)
        assert process.wait(10) == 4
        last = process.stderr.read().splitlines()[-1]
    assert last.endswith("samestep resume runs/tiny-1 goes on from the last checkpoint")


def test_fast_may_differ_and_verify_says_so(samestep, tiny):
    result = samestep("verify", tiny, "--replicas", "1,2,3", "sync.strategy=fast")
    assert result.code == 5
    assert "DIFFERENT" in result.out and "in step 1: the" in result.out and "first tensor" in result.out
    assert "use exact" in result.out


def test_verify_says_same_and_what_that_holds_for(samestep, tiny):
    result = samestep("verify", tiny, "--replicas", "1,2", "--steps", 2)
    assert result.code == 0
    assert result.out.startswith("same: 2 steps on 1, 2 replicas")
    assert all(word in result.out for word in ("threads 1", "torch 2.", "dtype bfloat16"))


def test_an_existing_run_is_not_touched(samestep, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").write_text("")
    result = samestep("train", tiny, "--run", "run")
    assert result.code == 2 and "run holds another run; choose another folder with --run" in result.err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["journal.jsonl"]


BAD = {
    "mistyped key": (["model.widht=3"], 2, "did you mean"),
    "wrong type": (["batch.micro_batch=four"], 2, "batch.micro_batch"),
    "fewer lanes than replicas": (["lanes=2", "run.replicas=3"], 2, "lanes"),
    "float16": (["model.dtype=float16"], 2, "loss scale"),
    "no such data": (["data.source=nowhere"], 3, "nowhere"),
    "a corpus shorter than one step": (["batch.micro_batch=4000"], 3, "one step takes 64000"),
    "no such model": (["model.path=nowhere"], 2, "nowhere"),
    "no such engine": (["--engine=slurm"], 2, "--engine is 'slurm', but must be one of local"),
    "width and heads": (["model.heads=3"], 2, "heads"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_its_code_and_nothing_written(samestep, tiny, tmp_path, case):
    overrides, code, words = BAD[case]
    result = samestep("train", tiny, *overrides)
    (line,) = [line for line in result.err.splitlines() if not line.startswith(("training a", "encoding"))]
    assert result.code == code and line.startswith("error: ") and words in line
    assert not (tmp_path / "runs").exists()


def test_errors_are_json_too_when_json_is_asked_for(samestep, tiny):
    result = samestep("train", tiny, "--json", "model.widht=3")
    assert result.code == 2
    assert result.json["exit_code"] == 2 and "widht" in result.json["error"]


def test_debug_shows_the_traceback(samestep, tiny):
    assert "Traceback" not in samestep("train", tiny, "lanes=0").err
    assert "Traceback" in samestep("train", tiny, "lanes=0", "--debug").err


def test_a_run_folder_that_cannot_be_made_is_one_line(samestep, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    result = samestep("train", tiny, "--run", tmp_path / "file" / "run")
    assert result.code == 4 and "Not a directory" in result.err.splitlines()[-1]


def test_words_for_what_nobody_foresaw():
    from samestep.cli.app import _in_words

    assert _in_words(ZeroDivisionError("by zero")) == (
        "ZeroDivisionError: by zero; this is a bug of samestep, --debug shows where",
        1,
    )


FILES = {
    "not UTF-8": ("a.txt", b"fine\nab\xff", 3, "a.txt:2:3: byte 0xff is not UTF-8"),
    "empty": ("a.txt", b"", 3, "holds no text"),
    "no JSON": ("a.jsonl", b'{"text": "x"}\n{"text"\n', 3, "a.jsonl:2:"),
    "another field": ("a.jsonl", b'{"body": "x"}\n', 3, "body"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_data_is_one_line_with_file_line_and_column(samestep, tiny, tmp_path, case):
    name, content, code, words = FILES[case]
    (tmp_path / name).write_bytes(content)
    result = samestep("train", tiny, f"data.source={tmp_path / name}")
    assert result.code == code and len(result.err.splitlines()) == 1 and words in result.err
    assert not (tmp_path / "runs").exists()


def test_a_mistyped_key_is_answered_with_its_place_and_the_nearest_key(samestep, tmp_path):
    (tmp_path / "recipe.yaml").write_text("steps: 3\nmodel:\n  layers: 2\n  widht: 64\n")
    result = samestep("train", "recipe.yaml")
    assert result.code == 2
    assert "recipe.yaml:4:3:" in result.err and "did you mean width" in result.err


def test_a_model_folder_without_weights_says_what_to_use(samestep, tiny, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama", "vocab_size": 300}')
    result = samestep("train", tiny, f"model.path={tmp_path / 'm'}")
    assert result.code == 2 and "holds no model.safetensors" in result.err and "model.config=" in result.err


@pytest.mark.slow
def test_a_trained_model_is_trained_on_and_a_tokenizer_too_large_for_it_refused(samestep, tiny, tmp_path):
    assert samestep("train", tiny, "--run", "one", "steps=2").code == 0
    model = tmp_path / "one" / "model"
    digests = {
        samestep("train", tiny, f"model.path={model}", "steps=2", "--replicas", n, "--json").json["digest"]
        for n in (1, 2)
    }
    assert len(digests) == 1
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    refused = samestep("train", tiny, f"model.path={model}")
    assert refused.code == 2 and "vocab_size" in refused.err and "512 tokens" in refused.err


@pytest.mark.slow
def test_any_transformers_config_is_trained_from_new_weights(samestep, tiny, tmp_path):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 400, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = samestep("verify", tiny, f"model.config={tmp_path / 'config.json'}", "--replicas", "1,3", "--steps", 2)
    assert result.code == 0, result.err
    assert result.out.startswith("same")
