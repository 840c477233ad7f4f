from detlib.checkpoint.report import group_names, loading_report


def test_parts_with_the_same_children_share_braces():
    names = [f"res2.{block}.conv1.weight" for block in (0, 1)]
    assert group_names(names) == [("res2.{0,1}.conv1.weight", 2)]


def test_three_or_more_numbers_in_a_row_become_a_range():
    assert group_names([f"conv{i}.weight" for i in (1, 2, 3)]) == [("conv{1..3}.weight", 3)]
    assert group_names([f"conv{i}.weight" for i in (1, 2, 4)]) == [("conv{1,2,4}.weight", 3)]


def test_numbered_names_of_several_stems_are_grouped_by_stem():
    names = [f"{name}.weight" for name in ("shortcut", "conv1", "conv2", "conv3")]
    assert group_names(names) == [("{shortcut,conv{1..3}}.weight", 4)]


def test_name_without_its_number_stays_in_the_list():
    assert group_names(["conv.weight", "conv1.weight", "conv2.weight"]) == [("conv{,1,2}.weight", 3)]


def test_parts_with_other_children_stay_apart():
    assert group_names(["a.weight", "a.bias", "b.weight"]) == [("{a.{weight,bias},b.weight}", 3)]


def test_pattern_over_the_width_is_split_and_counts_add_up():
    names = [f"{part}.{i}.{leaf}" for part in ("head", "neck") for i in range(3) for leaf in ("weight", "bias")]
    names.append("backbone.weight")
    assert group_names(names, max_width=30) == [("{head,neck}.{0..2}.{weight,bias}", 12), ("backbone.weight", 1)]


def test_hidden_leaves_become_a_star_only_if_there_are_several():
    assert group_names(["a.weight", "b.weight", "b.bias"], show_leaves=False) == [("{a.weight,b.*}", 3)]


def test_no_names_make_no_rows():
    assert group_names([]) == []


def test_report_has_a_row_for_each_fate():
    table = loading_report(["a.weight"], ["b.weight"], [("c.weight", (2,), (3,))], ["d.weight"])
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == ["loaded", "missing, as initialised", "other shape, not loaded", "unexpected, ignored"]
    assert "c.weight: [2] in the file, [3] in the model" in table


def test_report_of_very_many_rows_is_cut_with_the_number_of_the_rest():
    mismatched = [(f"c{i}", (2,), (3,)) for i in range(100)]
    table = loading_report([], [], mismatched, [])
    assert "... 61 more rows like these" in table
    assert len(table.splitlines()) == 2 + 40
