"""Bugs in what is written to the disk and taken up again."""

from bug import Bug

CHECKPOINT = "recover/test_checkpoint.py::"
POWER_CUT = CHECKPOINT + "test_after_a_power_cut_the_newest_is_whole_and_no_older_than_the_last_acknowledged"
CRASH = "recover/test_crashpoints.py"
RESUME = "verbs/test_resume.py::"

BUGS = [
    Bug(
        "a file is not synced",
        "recover/disk.py",
        "            self._os.fsync(file)\n",
        "",
        POWER_CUT,
    ),
    Bug(
        "a folder is not synced",
        "recover/disk.py",
        "self._os.fsync(opened)",
        "pass",
        POWER_CUT,
    ),
    Bug(
        "what a failed write left keeps its room",
        "recover/disk.py",
        "                self._os.unlink(path)\n",
        "                pass\n",
        CHECKPOINT + "test_a_file_that_could_not_be_written_leaves_nothing",
    ),
    Bug(
        "a checkpoint gets its name before its manifest is written",
        "recover/checkpoint.py",
        "    disk.write(partial / MANIFEST, [encode(manifest)])\n"
        "    disk.settle(partial)\n"
        "    disk.rename(partial, final)\n",
        "    disk.rename(partial, final)\n"
        "    disk.write(final / MANIFEST, [encode(manifest)])\n"
        "    disk.settle(final)\n",
        POWER_CUT,
    ),
    Bug(
        "a checkpoint gets its name before those of its files are synced",
        "recover/checkpoint.py",
        "    disk.settle(partial)\n    disk.rename(partial, final)",
        "    disk.rename(partial, final)",
        POWER_CUT,
    ),
    Bug(
        "an old checkpoint is deleted file by file under its own name",
        "recover/checkpoint.py",
        "    disk.rename(folder_of(checkpoints, step), partial)\n    disk.remove(partial)",
        "    disk.remove(folder_of(checkpoints, step))",
        CRASH,
    ),
    Bug(
        "files of a failed attempt stay in the checkpoint",
        "recover/checkpoint.py",
        "        disk.unlink(left)  #",
        "        pass  #",
        CHECKPOINT + "test_files_of_other_attempts_are_no_part_of_it",
    ),
    Bug(
        "rotation keeps one checkpoint less than asked for",
        "recover/checkpoint.py",
        "[: -max(keep, 1)]",
        "[: -max(keep - 1, 1)]",
        CHECKPOINT + "test_the_newest_are_kept_and_at_least_one",
    ),
    Bug(
        "what a killed save left is taken for a checkpoint",
        "recover/checkpoint.py",
        "map(_FOLDER.fullmatch, names)",
        "map(_FOLDER.match, names)",
        CHECKPOINT + "test_what_a_kill_left_is_no_checkpoint_and_is_written_over",
    ),
    Bug(
        "the newest checkpoint is taken without a look at its data",
        "recover/checkpoint.py",
        "return verify(folder_of(checkpoints, step)), refused",
        "return read(folder_of(checkpoints, step)), refused",
        CHECKPOINT + "test_the_newest_whole_one_is_loaded_and_the_reason_is_said",
    ),
    Bug(
        "the manifest's own digest is not compared",
        "recover/checkpoint.py",
        "found is None or found[2] != shards.digest(found[1]).encode()",
        "found is None",
        CHECKPOINT + "test_every_flipped_bit_of_a_manifest_and_a_header_is_refused",
    ),
    Bug(
        "a manifest that lacks a part is accepted",
        "recover/checkpoint.py",
        "    _refuse_gaps(manifest, path)\n",
        "",
        CHECKPOINT + "test_a_manifest_without_a_part_is_refused",
    ),
    Bug(
        "a tensor's digest is not compared on loading",
        "recover/shards.py",
        "digest(data) != shard.tensors[name]",
        "False",
        CHECKPOINT + "test_flipped_bits_of_the_data_are_refused_with_file_and_tensor",
    ),
    Bug(
        "digests see the first kilobyte only",
        "recover/shards.py",
        "xxhash.xxh3_128_hexdigest(data)",
        "xxhash.xxh3_128_hexdigest(memoryview(data)[:1024])",
        CHECKPOINT + "test_flipped_bits_of_the_data_are_refused_with_file_and_tensor",
    ),
    Bug(
        "the header of a shard is not compared",
        "recover/shards.py",
        "digest(header) != shard.header",
        "False",
        CHECKPOINT + "test_every_flipped_bit_of_a_manifest_and_a_header_is_refused",
    ),
    Bug(
        "the model's digest sees the first piece of a tensor only",
        "recover/digest.py",
        "        digest.update(piece)\n",
        "        digest.update(piece)\n        break\n",
        "recover/test_digest.py::test_a_big_tensor_is_hashed_in_pieces_without_being_held",
    ),
    Bug(
        "the older checkpoint goes before the newer is verified",
        "recover/keeper.py",
        "            checkpoint.verify(folder)\n        except DataError:\n            checkpoint.discard",
        "            pass\n        except DataError:\n            checkpoint.discard",
        "recover/test_keeper.py",
    ),
    Bug(
        "a damaged checkpoint stays when its step is saved again",
        "recover/keeper.py",
        "            self._disk.remove(folder)\n            return False\n",
        "            return True\n",
        "recover/test_keeper.py::test_a_damaged_one_makes_way_for_the_same_step_saved_again",
    ),
    Bug(
        "a damaged checkpoint of a later step counts as one to keep",
        "recover/keeper.py",
        "if step <= newest]",
        "]",
        "recover/test_keeper.py::test_a_damaged_one_of_a_later_step_costs_no_whole_one_its_place",
    ),
    Bug(
        "shards of two generations make one checkpoint",
        "recover/keeper.py",
        'key = event["step"], event["generation"]',
        'key = event["step"], 0',
        "recover/test_keeper.py",
    ),
    Bug(
        "a model folder gets its name before it is synced",
        "recover/folders.py",
        "    disk.sync(new)\n",
        "",
        CRASH,
    ),
    Bug(
        "the journal's checksums are not compared",
        "recover/journal.py",
        "found is None or found[2] != _check(found[1])",
        "found is None",
        "recover/test_journal.py::test_any_bit_changed_is_found_and_its_line_named",
    ),
    Bug(
        "a torn last line of the journal is read",
        "recover/journal.py",
        "enumerate(lines[:-1], start=1)",
        "enumerate(filter(None, lines), start=1)",
        "recover/test_journal.py::test_a_journal_cut_anywhere_holds_its_whole_lines_and_goes_on",
    ),
    Bug(
        "the journal goes on behind a torn line",
        "recover/journal.py",
        "os.ftruncate(self._file, _whole_lines(path))",
        "pass",
        "recover/test_journal.py::test_a_journal_cut_anywhere_holds_its_whole_lines_and_goes_on",
    ),
    Bug(
        "a line of the journal that a full disk cut is left there",
        "recover/journal.py",
        "os.ftruncate(self._file, os.fstat(self._file).st_size - written)",
        "pass",
        "recover/test_journal.py::test_a_line_that_was_written_in_part_is_taken_back",
    ),
    Bug(
        "lines of the journal wait for one another before they are written",
        "recover/journal.py",
        "            written = os.write(self._file, line)",
        '            self.held = getattr(self, "held", b"") + line\n'
        "            written = len(line)\n"
        "            if self.held.count(b'\\n') == 8:\n"
        "                os.write(self._file, self.held)\n"
        '                self.held = b""',
        "recover/test_journal.py",
    ),
    Bug(
        "the journal is not synced at its end",
        "recover/journal.py",
        "        os.fsync(self._file)\n",
        "",
        "recover/test_journal.py",
    ),
    Bug(
        "what is saved in the background is no copy",
        "replica/state.py",
        "values.detach().cpu().clone()",
        "values.detach().cpu()",
        "replica/test_state.py::test_a_snapshot_does_not_follow_the_training",
    ),
    Bug(
        "the optimizer's moments are not restored",
        "replica/state.py",
        "                _take(self.kinds()",
        "                len(self.kinds()",
        "replica/test_state.py",
    ),
    Bug(
        "the optimizer's counts of updates are not restored",
        "replica/state.py",
        "        self.updates = list(updates)\n",
        "",
        "replica/test_state.py",
    ),
    Bug(
        "what the held-out loss has shown is not in the checkpoint",
        "replica/checkpoints.py",
        '{"watch": self._watch.state()}',
        '{"watch": {"last": -1, "best": None, "waited": 0}}',
        "replica/test_checkpoints.py",
    ),
    Bug(
        "what the held-out loss has shown is not restored",
        "replica/checkpoints.py",
        '        self._watch.restore(manifest.state["watch"])\n',
        "",
        "replica/test_checkpoints.py",
    ),
    Bug(
        "a run that is stopped leaves no checkpoint of its own",
        "replica/checkpoints.py",
        "if stop or (every",
        "if (every",
        "test_cli.py::test_a_signal_asks_for_a_checkpoint_and_leaves_no_process",
    ),
    Bug(
        "a resumed run does not compare what it computes again",
        "verbs/resume.py",
        "summary, replayed(before))",
        "summary, {})",
        RESUME + "test_a_step_that_comes_out_otherwise_than_before_stops_it",
    ),
    Bug(
        "another digest of a step computed again is let pass",
        "verbs/logbook.py",
        'was != event["digest"]',
        "False",
        RESUME + "test_a_step_that_comes_out_otherwise_than_before_stops_it",
    ),
    Bug(
        "a resumed run takes other numbers in its recipe",
        "verbs/resume.py",
        "if not override.startswith(FREE):",
        "if False:",
        RESUME + "test_what_would_change_numbers_is_refused",
    ),
    Bug(
        "a resumed run takes other data",
        "verbs/resume.py",
        "if was[key] != now[key]:",
        "if False:",
        RESUME + "test_changed_data_are_refused",
    ),
]
