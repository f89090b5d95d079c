from dataplane.metrics import Histogram, Page


def lines(page):
    return [line for line in page.text().decode().splitlines() if not line.startswith("#")]


def test_a_histogram_is_cumulative():
    histogram = Histogram((1, 2, 4))
    for value in (1, 2, 2, 9):
        histogram.observe(value)
    page = Page()
    page.histograms("h", "text", [((("m", "a"),), histogram)])
    assert lines(page) == [
        'h_bucket{m="a",le="1"} 1',
        'h_bucket{m="a",le="2"} 3',
        'h_bucket{m="a",le="4"} 3',
        'h_bucket{m="a",le="+Inf"} 4',
        'h_sum{m="a"} 14',
        'h_count{m="a"} 4',
    ]


def test_a_family_has_its_help_and_type_once():
    page = Page()
    page.family("c_total", "counter", "Text.", [((("a", "1"),), 1), ((("a", "2"),), 0.5)])
    assert page.text().decode() == (
        '# HELP c_total Text.\n# TYPE c_total counter\nc_total{a="1"} 1\nc_total{a="2"} 0.5\n'
    )


def test_a_family_without_samples_is_left_out():
    page = Page()
    page.family("c_total", "counter", "Text.", [])
    assert lines(page) == [""] or lines(page) == []


def test_label_values_are_escaped():
    page = Page()
    page.family("g", "gauge", "Text.", [((("a", 'x"\\\n'),), 1)])
    assert lines(page) == ['g{a="x\\"\\\\\\n"} 1']


def a_page(value, generation):
    page = Page()
    histogram = Histogram((1, 2))
    histogram.observe(value)
    versions = (("model_name", "m"), ("model_version", "1"))
    page.family("c_total", "counter", "Text.", [(versions, value)])
    page.family("generation", "gauge", "Text.", [((), generation)], merge="min")
    page.histograms("h", "Text.", [(versions, histogram)])
    return Page.decode(page.encode())


def test_pages_of_several_processes_add_up():
    merged = Page.merged([a_page(1, 7), a_page(2, 6)])
    assert lines(merged) == [
        'c_total{model_name="m",model_version="1"} 3',
        "generation 6",
        'h_bucket{model_name="m",model_version="1",le="1"} 1',
        'h_bucket{model_name="m",model_version="1",le="2"} 2',
        'h_bucket{model_name="m",model_version="1",le="+Inf"} 2',
        'h_sum{model_name="m",model_version="1"} 3',
        'h_count{model_name="m",model_version="1"} 2',
    ]


def test_only_totals_of_a_dead_process_stay():
    assert [x.partition("{")[0] for x in lines(a_page(1, 7).totals())][:1] == ["c_total"]
    assert "generation" not in a_page(1, 7).totals().text().decode()


def test_versions_that_left_the_table_leave_the_page():
    page = a_page(1, 7)
    assert lines(page.without({("m", "1")})) == ["generation 7"]
    assert lines(page.without({("m", "2")})) == lines(page)
