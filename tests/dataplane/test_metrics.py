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
